"""cgpt itself: the checkpoint as published, and with its dense matrices rounded at load."""

import numpy as np

from peer_engines.base import Engine


class Cgpt(Engine):
    packages = ("cgpt",)
    settings = {
        "gpt2": ("f32", "bf16", "int8", "f32@avx2"),
        "gpt_oss": ("mxfp4+bf16", "mxfp4+int8", "mxfp4+bf16@avx2"),
    }

    @classmethod
    def versions(cls) -> str:
        import cgpt

        return f"cgpt {cgpt.__version__} ({cgpt.isa.level()})"

    def load(self, path) -> None:
        import cgpt

        dense = {"f32": None, "mxfp4+bf16": None, "exact": None}.get(self.precision, self.precision.split("+")[-1])
        precision = "exact" if self.precision == "exact" else "auto"
        self.model = cgpt.load(path, threads=self.threads, dense=dense, precision=precision)

    def reset(self) -> None:
        self.sequence = self.model.new_sequence(self.context)

    def step(self, ids) -> np.ndarray:
        for i in range(0, len(ids), self.model.PREFILL_CHUNK):
            logits = self.model.step([(self.sequence, ids[i : i + self.model.PREFILL_CHUNK])])
        return logits[0]
