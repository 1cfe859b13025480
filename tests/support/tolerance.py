"""Error bounds computed from magnitudes, and a comparison that says where it failed.

A fixed rtol is too strict where large terms cancel and too lax where they do not. A sum of products in
floating point is off by at most (roundings on the way) * u * sum |x| |w|, with u the unit roundoff, in any
order of summation (Higham, Accuracy and Stability of Numerical Algorithms, 3.1). Bounds are multiples of it.

How many `terms` (roundings) to grant: with operands of mixed sign the errors are mostly independent, and 8
covers any order of summation at any length; with operands of one sign they grow like the square root of the
length. The whole length is the rigorous bound, but it would hide a wrong weight.
"""

import numpy as np

F32, F16, BF16 = 2.0**-24, 2.0**-11, 2.0**-8  # unit roundoffs
TINY = 2.0**-126  # below this, kernels may flush to zero


def dot_tolerance(x, w, eps=F32, terms=8):
    """Bound on |computed - exact| for x @ w.T; x [T, K], w [N, K] -> float64 [T, N].

    eps: unit roundoff of the arithmetic, or of an operand that is rounded before the product (then terms=1).
    """
    x, w = np.abs(np.asarray(x, np.float64)), np.abs(np.asarray(w, np.float64))
    return terms * (eps * (x @ w.T) + TINY)


def value_tolerance(values, eps=F32, terms=4):
    """Bound for an element-wise result that passes through `terms` roundings, float64 of the same shape."""
    return terms * (eps * np.abs(np.asarray(values, np.float64)) + TINY)


def assert_close(actual, expected, bound, what):
    """Asserts |actual - expected| <= bound everywhere; NaN matches NaN only, infinity itself only.

    expected: float64. bound: broadcastable to it. what: named in the message, beside the worst element.
    """
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert expected.dtype == np.float64, f"{what}: the expected values are {expected.dtype}, not float64"
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, expected {expected.shape}"
    actual, bound = actual.astype(np.float64), np.broadcast_to(bound, expected.shape)
    same = (actual == expected) | (np.isnan(actual) & np.isnan(expected))
    with np.errstate(invalid="ignore", divide="ignore"):
        excess = np.where(same, 0.0, np.abs(actual - expected) / bound)
    excess = np.nan_to_num(excess, nan=np.inf)
    failed = int((excess > 1).sum())
    if failed:
        at = np.unravel_index(excess.argmax(), excess.shape)
        index = ", ".join(str(int(i)) for i in at)
        raise AssertionError(
            f"{what}: {failed} of {excess.size} values out of tolerance, the worst at [{index}]: "
            f"{actual[at]:.9g}, expected {expected[at]:.9g}, "
            f"off by {abs(actual[at] - expected[at]):.3g}, allowed {bound[at]:.3g}"
        )
