"""cgpt itself: the checkpoint as published, with its dense matrices rounded at load, and activations too (a8)."""

import numpy as np

from peer_engines.base import Engine


class Cgpt(Engine):
    packages = ("cgpt",)
    settings = {
        "gpt2": ("f32", "bf16", "int8", "int8+a8", "f32@avx2"),
        "gpt_oss": ("mxfp4+bf16", "mxfp4+int8", "mxfp4+int8+a8", "mxfp4+bf16@avx2"),
    }

    @classmethod
    def versions(cls) -> str:
        import cgpt

        return f"cgpt {cgpt.__version__} ({cgpt.kernels.isa.level()})"

    def load(self, path) -> None:
        import cgpt

        weights = self.precision.removesuffix("+a8")
        dense = {"f32": None, "mxfp4+bf16": None, "exact": None}.get(weights, weights.split("+")[-1])
        precision = "exact" if weights == "exact" else "int8" if weights != self.precision else "auto"
        self.model = cgpt.load(path, threads=self.threads, dense=dense, precision=precision)

    def reset(self) -> None:
        self.sequence = self.model.transformer.new_cache(self.context)

    def step(self, ids) -> np.ndarray:
        for i in range(0, len(ids), self.model.transformer.PREFILL_CHUNK):
            logits = self.model.transformer.step([(self.sequence, ids[i : i + self.model.transformer.PREFILL_CHUNK])])
        return logits[0]
