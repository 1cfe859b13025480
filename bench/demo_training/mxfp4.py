"""MXFP4, the format of gpt-oss's experts: groups of 32 four-bit floats (sign, 2 bits of exponent, 1 bit of
mantissa) that share a power of two.  In a checkpoint, element 2j of a group is the low nibble of byte j."""

import torch

MAGNITUDES = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
MIDDLES = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])


def exponents(groups):
    """groups [..., 32] -> [..., 1]: puts the largest magnitude of a group into (3.5, 7]; 6 to 7 saturate."""
    top = groups.abs().amax(-1, keepdim=True).clamp(min=1e-30)
    return torch.ceil(torch.log2(top / 7)).clamp(-126, 126)


def pack(w):
    """w [..., K] -> blocks uint8 [..., K/32, 16], scales uint8 [..., K/32].  Ties go to the even code."""
    g = w.detach().float().unflatten(-1, (-1, 32))
    e = exponents(g)
    m = (g.abs() * torch.exp2(-e)).contiguous()
    down, up = torch.bucketize(m, MIDDLES), torch.bucketize(m, MIDDLES, right=True)  # differ at a tie
    code = (torch.where(down % 2 == 0, down, up) + 8 * g.signbit()).to(torch.uint8)
    return code[..., 0::2] | code[..., 1::2] << 4, (e[..., 0] + 127).to(torch.uint8)


def unpack(blocks, scales):
    """blocks uint8 [..., G, 16], scales uint8 [..., G] -> float32 [..., 32 G]"""
    values = torch.cat([MAGNITUDES, -MAGNITUDES])
    v = torch.stack([values[(blocks & 15).long()], values[(blocks >> 4).long()]], -1).flatten(-2)
    return (v * torch.exp2(scales.float() - 127)[..., None]).flatten(-2)


def fake_quantise(w):
    """w as unpack(*pack(w)) gives it, but faster, and with the gradient passing straight through."""
    with torch.no_grad():
        g = w.float().unflatten(-1, (-1, 32))
        e = exponents(g)
        m = g * torch.exp2(-e)
        a = m.abs()
        step = torch.where(a < 2, 0.5, torch.where(a < 4, 1.0, 2.0))
        q = ((torch.round(m / step) * step).clamp(-6, 6) * torch.exp2(e)).flatten(-2)
    return w + (q - w).detach()
