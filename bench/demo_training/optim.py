"""Muon for hidden matrices, AdamW for the rest, and the learning-rate schedule of both demo models."""

import math

import torch


def orthogonalise(g, steps=5):
    """g [..., rows, cols] -> the nearest semi-orthogonal matrix, roughly: Newton-Schulz with the quintic's
    coefficients of Muon (Keller Jordan, 2024)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        s = x @ x.mT
        x = a * x + (b * s + c * s @ s) @ x
    return (x.mT if tall else x).float()


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised; scaled so that the update has the RMS of an AdamW update (0.2)."""

    def __init__(self, params, lr=1e-3, momentum=0.95, weight_decay=0.0):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                momentum.lerp_(p.grad, 1 - group["momentum"])
                update = orthogonalise(p.grad.lerp(momentum, group["momentum"]))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-group["lr"] * 0.2 * math.sqrt(max(p.shape[-2:])))


def make_optimizers(model, is_hidden, lr_muon, lr_adam, weight_decay):
    """is_hidden(name, parameter): whether Muon takes it.  Weight decay on hidden matrices only."""
    hidden = [p for n, p in model.named_parameters() if is_hidden(n, p)]
    other = [p for n, p in model.named_parameters() if not is_hidden(n, p)]
    opts = [
        Muon(hidden, lr=lr_muon, weight_decay=weight_decay),
        torch.optim.AdamW(other, lr=lr_adam, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0, fused=True),
    ]
    for o in opts:
        for g in o.param_groups:
            g["peak"] = g["lr"]
    return opts


def set_lr(opts, step, steps, warmup=100, decay=0.5):
    """Linear warm-up, flat, then linear to zero over the last `decay` of the steps; step counts from 0."""
    scale = min(1.0, (step + 1) / warmup, (steps - step) / (decay * steps))
    for o in opts:
        for g in o.param_groups:
            g["lr"] = g["peak"] * scale
