"""cgpt itself: the checkpoint as published, with its dense matrices rounded at load, and activations too (a8)."""

import numpy as np

from peer_engines.base import Engine

F32 = "f32, products as f32, cache f16"
BF16 = "bf16, prompts' products bf16 where the CPU has them, cache f16"
INT8 = "int8 in groups of 64, products of 16-bit activations, cache f16"
A8 = "int8 in groups of 64, products of 8-bit activations, cache f16"


class Cgpt(Engine):
    packages = ("cgpt",)
    settings = {
        "gpt2": {
            "f32": F32,
            "bf16": BF16,
            "bf16-packed": f"{BF16}; 12 bits a weight",
            "int8": INT8,
            "int8+a8": A8,
            "f32@avx2": F32,
        },
        "gpt_oss": {
            "mxfp4+bf16": f"experts MXFP4, others {BF16}",
            "mxfp4+bf16-packed": f"experts MXFP4, others {BF16}; 12 bits a weight",
            "mxfp4+int8": f"experts MXFP4, others {INT8}",
            "mxfp4+int8+a8": f"experts MXFP4, others {A8}",
            "mxfp4+bf16@avx2": f"experts MXFP4, others {BF16}",
            "mxfp4+int8+a8@avx2": f"experts MXFP4, others {A8}",
        },
    }

    @classmethod
    def versions(cls, library="") -> str:
        import cgpt

        return f"cgpt {cgpt.__version__} ({cgpt.kernels.isa.level()})"

    def load(self, path) -> None:
        import cgpt

        weights = self.precision.removesuffix("+a8")
        dense = {"f32": None, "mxfp4+bf16": None, "exact": None}.get(weights, weights.split("+")[-1])
        precision = "exact" if weights == "exact" else "int8" if weights != self.precision else "auto"
        self.model = cgpt.load(path, threads=self.threads, dense=dense, precision=precision)

    def reset(self, sequences) -> None:
        self.caches = [self.model.transformer.new_cache(self.context) for _ in range(sequences)]

    def step(self, ids) -> np.ndarray:
        transformer = self.model.transformer
        for i in range(0, len(ids[0]), transformer.PREFILL_CHUNK):
            part = slice(i, i + transformer.PREFILL_CHUNK)
            logits = transformer.step([(cache, one[part]) for cache, one in zip(self.caches, ids, strict=True)])
        return logits
