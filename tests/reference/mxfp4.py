"""MXFP4: groups of 32 four-bit floats (e2m1) that share one eight-bit power of two (e8m0)."""

import numpy as np

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def dequantise(blocks, scales, dtype=np.float64):
    """blocks uint8 [..., K/32, 16], scales uint8 [..., K/32] -> [..., K].

    Byte b of a group holds element 2b in its low nibble, 2b+1 in its high one; value = e2m1 * 2^(scale-127).
    Scale 255 is NaN, as in the OCP Microscaling specification 1.0; scale 0 is 2^-127.
    """
    pairs = np.stack([blocks & 15, blocks >> 4], -1)  # [..., K/32, 16, 2]
    values = E2M1.astype(dtype)[pairs].reshape(*blocks.shape[:-1], 32)
    powers = np.where(scales == 255, np.nan, np.exp2(scales.astype(np.float64) - 127)).astype(dtype)
    return (values * powers[..., None]).reshape(*blocks.shape[:-2], -1)
