"""Causal attention: grouped-query, with an optional sliding window and optional sinks."""

import numpy as np


def attention(q, k, v, scale, positions=None, window=None, sinks=None, block=64):
    """softmax(scale * q k^T) v over the keys each query may see.

    q          [R, H, D]  query r stands at positions[r]; positions defaults to 0..R-1
    k, v       [T, G, D]  keys and values of positions 0..T-1; query head h reads kv head h // (H / G)
    window     a query at position p sees keys p-window+1..p, itself included; None: 0..p
    sinks      [H]: one more logit per head that takes its share of the softmax and adds no value
    block      queries computed at a time; bounds the memory at H * block * T numbers
    -> [R, H, D]
    """
    (R, H, D), G = q.shape, k.shape[1]
    positions = np.arange(R) if positions is None else np.asarray(positions)
    sinks = None if sinks is None else sinks.reshape(G, H // G, 1, 1)
    out = np.empty_like(q)
    for start in range(0, R, block):
        rows = slice(start, start + block)
        p = positions[rows, None]
        first = 0 if window is None else max(0, int(p.min()) - window + 1)
        last = int(p.max()) + 1
        key_positions = np.arange(first, last)
        visible = key_positions <= p  # [rows, keys]
        if window is not None:
            visible &= key_positions > p - window

        heads = G, H // G, len(p)
        q_groups = q[rows].reshape(-1, G, H // G, D).transpose(1, 2, 0, 3).reshape(G, -1, D)
        scores = (q_groups @ k[first:last].transpose(1, 2, 0)).reshape(*heads, -1)  # [G, H/G, rows, keys]
        weights = softmax(np.where(visible, scale * scores, -np.inf), sinks)
        values = weights.reshape(G, -1, last - first) @ v[first:last].transpose(1, 0, 2)
        out[rows] = values.reshape(*heads, D).transpose(2, 0, 1, 3).reshape(-1, H, D)
    return out


def softmax(x, sinks=None):
    """Over the last axis; `sinks` (broadcastable to x[..., :1]) joins the sum but not the result."""
    peak = x.max(-1, keepdims=True)
    if sinks is not None:
        peak = np.maximum(peak, sinks)
    weights = np.exp(x - peak)
    total = weights.sum(-1, keepdims=True)
    if sinks is not None:
        total = total + np.exp(sinks - peak)
    return weights / total
