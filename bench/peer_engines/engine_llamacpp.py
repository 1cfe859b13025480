"""llama.cpp through llama-cpp-python, on a GGUF file that gguf_file.py writes. Its cache is f16, as by default."""

import numpy as np

from peer_engines.base import Engine


class LlamaCpp(Engine):
    packages = ("llama-cpp-python", "gguf")
    settings = {"gpt2": ("f32", "bf16", "q8_0"), "gpt_oss": ("mxfp4+q8_0",)}

    def prepare(self, work):
        from peer_engines.gguf_file import write_gguf

        out = work / f"{self.precision}.gguf"
        if not out.exists():
            write_gguf(self.checkpoint, self.config, out, self.precision.split("+")[-1])
        return out

    def load(self, path) -> None:
        import llama_cpp

        self.llama_cpp = llama_cpp
        self.llama = llama_cpp.Llama(
            str(path),
            n_ctx=self.context,
            n_batch=512,
            n_ubatch=512,
            n_threads=self.threads,
            n_threads_batch=self.threads,
            flash_attn=True,
            verbose=False,
        )

    def reset(self) -> None:
        self.llama.reset()

    def step(self, ids):
        self.llama.eval(ids)
        pointer = self.llama_cpp.llama_get_logits_ith(self.llama.ctx, -1)
        return np.ctypeslib.as_array(pointer, (self.config["vocab_size"],)).copy()
