"""gpt-oss in PyTorch, at a size a CPU can train: every expert is computed for every token, which at that size
is faster than gathering, and the experts' matrices can be rounded to MXFP4 as they are used."""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F
from mxfp4 import fake_quantise


def rope_tables(c, t):
    """cos, sin [t, head_dim/2]: YaRN 'by parts' with its concentration factor, as in gpt-oss."""
    d, s = c["head_dim"], c["rope_scaling"]
    base = c["rope_theta"] ** (-torch.arange(0, d, 2, dtype=torch.float64) / d)

    def pair_of(rotations):
        """The frequency pair that turns so often within the original context."""
        ratio = s["original_max_position_embeddings"] / (rotations * 2 * math.pi)
        return d * math.log(ratio) / (2 * math.log(c["rope_theta"]))

    low, high = pair_of(s["beta_fast"]), pair_of(s["beta_slow"])
    ramp = ((torch.arange(d // 2) - low) / (high - low)).clamp(0, 1)
    angle = torch.arange(t, dtype=torch.float64)[:, None] * (base * (1 - ramp) + base / s["factor"] * ramp)
    m = 0.1 * math.log(s["factor"]) + 1.0
    return (angle.cos() * m).float(), (angle.sin() * m).float()


def rms_norm(x, w):
    """x [N, H] float32, w [H]"""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * w


def rotate(x, cos, sin):
    """x [B, heads, T, d], cos/sin [T, d/2]; pairs are (j, j + d/2)"""
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)


def swiglu(g, u, w):
    """g, u [N, E, I] gate and up, w [N, E] router weights (0 for experts not chosen) -> [N, E, I]"""
    dtype = g.dtype
    g, u = g.float().clamp(max=7.0), u.float().clamp(-7.0, 7.0)
    return (g * torch.sigmoid(1.702 * g) * (u + 1) * w[..., None]).to(dtype)


class Layer(nn.Module):
    def __init__(self, c, sliding, fn):
        super().__init__()
        h, d, e, i = c["hidden_size"], c["head_dim"], c["num_local_experts"], c["intermediate_size"]
        nq, nkv = c["num_attention_heads"], c["num_key_value_heads"]
        self.c, self.sliding, self.fn = c, sliding, fn

        def matrix(*shape, scale=1.0):
            return nn.Parameter(torch.randn(*shape) * scale * shape[-1] ** -0.5)

        def zeros(*shape):
            return nn.Parameter(torch.zeros(*shape))

        self.norm1, self.norm2 = nn.Parameter(torch.ones(h)), nn.Parameter(torch.ones(h))
        self.q, self.k, self.v = matrix(nq * d, h), matrix(nkv * d, h), matrix(nkv * d, h)
        self.o = matrix(h, nq * d, scale=0.3)
        self.q_bias, self.k_bias, self.v_bias = zeros(nq * d), zeros(nkv * d), zeros(nkv * d)
        self.o_bias, self.sinks = zeros(h), zeros(nq)
        self.router, self.router_bias = matrix(e, h), zeros(e)
        self.gate, self.up, self.down = matrix(e, i, h), matrix(e, i, h), matrix(e, h, i, scale=0.3)
        self.gate_bias, self.up_bias, self.down_bias = zeros(e, i), zeros(e, i), zeros(e, h)

    def attention(self, x, rope, mask):
        """x [B, T, H], mask {sliding: [T, T] added to the scores} -> [B, T, H]"""
        b, t, _ = x.shape
        nq, nkv, d = self.c["num_attention_heads"], self.c["num_key_value_heads"], self.c["head_dim"]
        bias = torch.cat([self.q_bias, self.k_bias, self.v_bias])
        qkv = F.linear(x, torch.cat([self.q, self.k, self.v]), bias).view(b, t, nq + 2 * nkv, d)
        q, k, v = qkv.transpose(1, 2).split([nq, nkv, nkv], 1)
        q, k = self.fn["rotate"](q, *rope) * d**-0.5, self.fn["rotate"](k, *rope)
        q = q.reshape(b, nkv, nq // nkv * t, d)  # q head h reads kv head h // (nq / nkv)
        k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))  # key t is the sink: score 0 + sinks, value 0
        sink = self.sinks[:, None, None].expand(-1, t, 1)
        bias = torch.cat([mask[self.sliding].expand(nq, -1, -1), sink], -1)  # [nq, T, T + 1]
        s = (q @ k.mT).view(b, nq, t, t + 1)
        with torch.autocast("cpu", enabled=False):  # bf16 in and out will do, and is much faster
            p = (s + bias.to(s.dtype)).softmax(-1)
        y = (p.view(b, nkv, nq // nkv * t, t + 1) @ v).view(b, nq, t, d)
        return F.linear(y.transpose(1, 2).reshape(b, t, nq * d), self.o, self.o_bias)

    def moe(self, x, quantise):
        """x [N, H] -> [N, H], router logits [N, E].  All experts at once; those not chosen have weight 0."""
        e, i = self.gate_bias.shape
        logits = F.linear(x, self.router, self.router_bias).float()
        top, index = logits.topk(self.c["num_experts_per_tok"], -1)
        w = torch.zeros_like(logits).scatter(-1, index, top.softmax(-1))
        gate, up, down = ((fake_quantise(m) if quantise else m) for m in (self.gate, self.up, self.down))
        g = F.linear(x, gate.view(e * i, -1), self.gate_bias.view(-1)).view(-1, e, i)
        u = F.linear(x, up.view(e * i, -1), self.up_bias.view(-1)).view(-1, e, i)
        a = self.fn["swiglu"](g, u, w).view(-1, e * i)
        return F.linear(a, down.transpose(0, 1).reshape(-1, e * i)) + w @ self.down_bias, logits


class TinyGptOss(nn.Module):
    """c: a checkpoint's config.json as a dict.  compiled: fuse the pointwise parts with torch.compile."""

    def __init__(self, c, compiled=False):
        super().__init__()
        self.c = c
        fn = dict(rms_norm=rms_norm, rotate=rotate, swiglu=swiglu)
        self.fn = {k: torch.compile(f, dynamic=True) for k, f in fn.items()} if compiled else fn
        self.embedding = nn.Parameter(torch.randn(c["vocab_size"], c["hidden_size"]) * 0.5)
        self.layers = nn.ModuleList(Layer(c, t == "sliding_attention", self.fn) for t in c["layer_types"])
        self.norm = nn.Parameter(torch.ones(c["hidden_size"]))
        self.head = nn.Parameter(torch.randn(c["vocab_size"], c["hidden_size"]) * 0.02)

    def forward(self, ids, keep=None, quantise=True):
        """ids [B, T] -> logits [B*T, V], router logits of each layer.  keep: flat positions to compute logits
        for; the last layer's experts then run only there.  Padding may only follow a sequence."""
        b, t = ids.shape
        rope = rope_tables(self.c, t)
        ahead = torch.arange(t)[:, None] - torch.arange(t)
        hidden = {True: (ahead < 0) | (ahead >= self.c["sliding_window"]), False: ahead < 0}
        mask = {k: torch.zeros(t, t).masked_fill(m, -1e30) for k, m in hidden.items()}
        x, routed, norm = self.embedding[ids].view(b * t, -1), [], self.fn["rms_norm"]
        for layer in self.layers:
            x = x + layer.attention(norm(x, layer.norm1).view(b, t, -1), rope, mask).view(b * t, -1)
            if keep is not None and layer is self.layers[-1]:
                x = x[keep]
            y, logits = layer.moe(norm(x, layer.norm2), quantise)
            x = x + y
            routed.append(logits)
        return F.linear(norm(x, self.norm), self.head), routed


def balance_loss(routed, real):
    """Switch Transformer's, eq. 4: experts x sum over experts of (share of the choices) x (mean probability).
    routed: router logits of each layer, [N, E]; real: bool [N], False for padding."""
    total = 0.0
    for logits in routed:
        z = logits[real] if len(logits) == len(real) else logits
        n, e = z.shape
        share = torch.zeros(e).index_add(0, z.topk(4, -1)[1].flatten(), torch.full((n * 4,), 0.25 / n))
        total = total + e * (share * z.softmax(-1).mean(0)).sum()
    return total / len(routed)
