"""What dense matrices of four to eight bits cost: cgpt's "int8" and "int4" beside the formats of llama.cpp and MXFP4.

    python bench/quality_formats.py [MODEL ..]

Every matrix that products read whole is rounded, the head too, and the model computed with its values in f32: the same
kernels for all. KL divergence from the exact model and top-1 agreement, on the text of the package. Rows are of a
multiple of 32 weights. The formats are as ggml-quants.c rounds them without an importance matrix (Q4_0, Q4_1 and Q5_1
equal gguf-py's to the bit); "searched": of three powers of two the one of least squared error.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import numpy as np

import cgpt
from cgpt.analysis import quality
from cgpt.checkpoint.loader import Loader
from cgpt.kernels import _kernels as k

IQ4_NL = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)


def f16(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float16).astype(np.float32)


def nearest(values: np.ndarray, x: np.ndarray) -> np.ndarray:
    return values[np.searchsorted((values[1:] + values[:-1]) / 2, x, side="right")]


def edge(g: np.ndarray) -> np.ndarray:
    """The value of largest magnitude of each group, [n, 1]."""
    return np.take_along_axis(g, np.abs(g).argmax(1)[:, None], 1)


def inverse(d: np.ndarray) -> np.ndarray:
    return np.divide(1, d, out=np.zeros_like(d), where=d != 0)


def q4_0(g: np.ndarray) -> np.ndarray:
    d = edge(g) / -8
    return (np.minimum(15, np.floor(g * inverse(d) + np.float32(8.5))) - 8) * f16(d)


def with_minimum(bits: int) -> Callable[[np.ndarray], np.ndarray]:
    def rounded(g: np.ndarray) -> np.ndarray:
        low, n = g.min(1, keepdims=True), np.float32(2**bits - 1)
        d = (g.max(1, keepdims=True) - low) / n
        return np.minimum(n, np.floor((g - low) * inverse(d) + np.float32(0.5))) * f16(d) + f16(low)

    return rounded


def iq4_nl(g: np.ndarray) -> np.ndarray:
    """quantize_row_iq4_nl_impl: weighted by x^2, 15 scales are tried."""
    d = best = np.zeros((len(g), 1), np.float32)
    for at in (-IQ4_NL[0], *(IQ4_NL[0] + np.arange(-7, 8))):
        q = nearest(IQ4_NL, g * at * inverse(edge(g)))
        qx, qq = ((g * g * q * other).sum(1, keepdims=True) for other in (g, q))
        better = qx * qx > best * qq
        d = np.where(better, qx * inverse(qq), d)
        best = np.where(better, d * qx, best)
    return nearest(IQ4_NL, g * inverse(d)) * f16(d)


def mxfp4(*exponents: int) -> Callable[[np.ndarray], np.ndarray]:
    def rounded(g: np.ndarray) -> np.ndarray:
        first = np.exp2(np.floor(np.log2(np.abs(edge(g)) + np.float32(1e-30))) - 2)
        tries = [np.sign(g) * nearest(E2M1, np.abs(g) / first / s) * first * s for s in np.exp2(exponents)]
        errors = [((one - g) ** 2).sum(1) for one in tries]
        found: np.ndarray = np.stack(tries)[np.argmin(errors, axis=0), np.arange(len(g))]
        return found

    return rounded


def int4(w: np.ndarray) -> np.ndarray:
    codes, scales = k.quantize_int4(w, "F32", 1)
    return unpacked(k.int4_decode(codes), scales, w)


def int8(w: np.ndarray) -> np.ndarray:
    return unpacked(*k.quantize_int8(w, "F32", 1), w)


def unpacked(q: np.ndarray, scales: np.ndarray, w: np.ndarray) -> np.ndarray:
    values = q.reshape(len(w), -1, 64) * (scales.astype(np.uint32) << 16).view(np.float32)[..., None]
    return values.reshape(len(w), -1)[:, : w.shape[1]]


def by_32(rounded: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    return lambda w: rounded(w.reshape(-1, 32)).reshape(w.shape)


FORMATS: dict[str, tuple[float, Callable[[np.ndarray], np.ndarray]]] = {
    "MXFP4": (4.25, by_32(mxfp4(0))),
    "MXFP4, searched": (4.25, by_32(mxfp4(0, 1, -1))),
    "cgpt int4": (4.25, int4),
    "Q4_0": (4.5, by_32(q4_0)),
    "IQ4_NL": (4.5, by_32(iq4_nl)),
    "Q4_1": (5, by_32(with_minimum(4))),
    "Q5_1": (6, by_32(with_minimum(5))),
    "cgpt int8": (8.25, int8),
}


def rounded_model(name: str, rounded: Callable[[np.ndarray], np.ndarray]) -> cgpt.Model:
    """The model whose dense matrices hold, in f32, what `rounded` makes of them."""

    def quantised(
        self: Loader, name: str, matrices: Any, dtype: str, bias: Any, transposed: bool = False, experts: bool = False
    ) -> k.Matrix:
        floats = [(m.astype(np.uint32) << 16).view(np.float32) if dtype == "BF16" else m for m in matrices]
        made = [rounded(np.ascontiguousarray(m.T if transposed else m, np.float32)) for m in floats]
        made = [np.ascontiguousarray(m, np.float32) for m in made]
        return k.Matrix("F32", np.stack(made) if experts else made[0], bias=bias)

    with patch.object(Loader, "_quantised", quantised):
        return cgpt.load(name, precision="exact", dense="int8")


def main() -> None:
    for name in sys.argv[1:] or ("demo-gpt2", "demo-gpt-oss"):
        exact = cgpt.load(name, precision="exact")
        ids = exact.encode_prompt(quality.TEXT.read_text(encoding="utf-8"))
        print(f"{name}\n{'':17}bits     KL            top-1")
        for label, (bits, rounded) in FORMATS.items():
            found = quality.compare(exact, rounded_model(name, rounded), ids)
            kl = f"{found.kl_mean:.5f} +- {found.kl_mean_se:.5f}"
            print(f"{label:17}{bits:<5} {kl}  {found.top1_agreement:.2%}", flush=True)


if __name__ == "__main__":
    main()
