"""Dense matrices of synthetic checkpoints whose exponents are spread as those of trained ones.

Weights that are all drawn alike, from N(0, std), have fewer exponents than trained ones. With tails a weight of row n
is

    std * 2^(0.3 s[n]) * h(z),    h(z) = z e^(0.05 z^2) / 1.18,    s and z drawn from N(0, 1)

* h is Tukey's h distribution (Modern Techniques in Data Analysis, 1977), of variance 1 and kurtosis 5.5. Rows of the
  demo models have 2.8 to 3.7, wide layers of published ones more.
* s makes rows of different size. In demo-gpt2's its standard deviation is 0.1 to 0.5.
* A share of the rows, drawn at random, is awkward: the magnitudes are std * 2^(0.3 s[n]) * 2^(2 - 24 u), u drawn from
  [0, 1), so that few weights have more than 16 exponents.

A row is an output: of GPT-2's Conv1D, [in, out], it is a column. Beside awkward rows, 0.2 % of those of 2,880 have
more than 16 exponents in one of the runs of 1,024 that share a table when they are packed.
"""

from functools import lru_cache

import numpy as np
from numpy.random import SFC64, Generator, SeedSequence

SIZES = 0.3  # standard deviation of the rows' sizes, in powers of two
TAIL = 0.1  # h(z) is proportional to z exp(TAIL z^2 / 2)
TOP, WIDTH = 2.0, 24.0  # an awkward row's magnitudes, in powers of two: the largest, and how far they spread


class WeightTails:
    """What stands in the matrices of a checkpoint of which a `share` of the rows is awkward."""

    def __init__(self, share: float, seed: int, normal: np.ndarray) -> None:
        """normal: 65,536 quantiles of N(0, 1)."""
        self._share, self._seed = share, seed
        values = normal * np.exp(TAIL / 2 * normal**2)
        self._usual = (values / values.std()).astype(np.float32)
        signs, u = np.arange(65536) % 2 * 2 - 1, np.arange(65536) / 65536
        self._wide = (signs * np.exp2(TOP - WIDTH * u)).astype(np.float32)

    def values(
        self, name: str, shape: tuple[int, ...], transposed: bool, std: float, begin: int, bits: np.ndarray
    ) -> np.ndarray:
        """float32 [len(bits)]: the elements of a matrix [N, K], or [K, N] where transposed, from `begin` on, as random
        bits, uint16, choose them."""
        at = np.arange(begin, begin + len(bits))
        row = at % shape[1] if transposed else at // shape[1]
        sizes, awkward = _rows(self._seed, name, shape[transposed], self._share)
        chosen: np.ndarray = np.where(awkward[row], self._wide[bits], self._usual[bits])
        return chosen * (np.float32(std) * sizes)[row]


@lru_cache(maxsize=1)
def _rows(seed: int, name: str, count: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    """float32 sizes, and which rows are awkward."""
    stream = Generator(SFC64(SeedSequence([seed, *f"{name} tails".encode()])))
    sizes = np.exp2(SIZES * stream.standard_normal(count)).astype(np.float32)
    return sizes, stream.random(count) < share
