"""llama.cpp through llama-cpp-python's functions, on a GGUF file that gguf_file.py writes."""

from peer_engines.ggml_batches import BATCH, GgmlEngine

Q8_0 = "q8_0, products of 8-bit activations, cache f16"


class LlamaCpp(GgmlEngine):
    packages = ("llama-cpp-python", "gguf")
    settings = {
        "gpt2": {
            "f32": "f32, products f32, cache f16",
            "f16": "f16, products f16, cache f16",
            "bf16": "bf16, products bf16, cache f16",
            "q8_0": Q8_0,
        },
        "gpt_oss": {"mxfp4+q8_0": f"experts MXFP4, others {Q8_0}"},
    }

    def load(self, path) -> None:
        import llama_cpp

        self.api = llama_cpp
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        if not self.model:
            raise RuntimeError("it could not load the file")

    def new_context(self, sequences):
        parameters = self.api.llama_context_default_params()
        parameters.n_ctx = sequences * (self.context + -self.context % 256)  # it rounds each sequence's share
        parameters.n_seq_max = sequences
        parameters.n_batch = parameters.n_ubatch = BATCH
        parameters.n_threads = parameters.n_threads_batch = self.threads
        parameters.flash_attn_type = self.api.LLAMA_FLASH_ATTN_TYPE_ENABLED
        parameters.swa_full = False  # layers that look back 128 positions keep no more
        context = self.api.llama_init_from_model(self.model, parameters)
        if not context:
            raise RuntimeError("it could not make a context")
        return context

    def clear(self) -> None:
        self.api.llama_memory_clear(self.api.llama_get_memory(self.llama), True)
