"""ik_llama.cpp, from the shared library that --library names, with its run-time repacking.

GPT-2 is left out: the version of 2026-08-15 wants an output matrix of its own, and then aborts in its norms.

It has no stable ABI. Parameters are passed as blocks larger than any version's: of a context the first words are set,
of a model the flag after its pointers; both are found by their defaults, and a library that has others is refused.
"""

import ctypes

from peer_engines.base import Skip
from peer_engines.engine_llamacpp import Q8_0
from peer_engines.ggml_batches import BATCH, GgmlEngine

CONTEXT_DEFAULTS = [512, 2048, 512, 1]  # n_ctx, n_batch, n_ubatch, n_seq_max; after the seed, before the threads
FLAGS = bytes(32) + bytes([0, 1, 0, 0, 0])  # null pointers; vocab_only, use_mmap, use_mlock, check_tensors, repack


class Parameters(ctypes.Structure):
    _fields_ = [("words", ctypes.c_int32 * 128)]


class Batch(ctypes.Structure):
    _fields_ = [
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
        ("more", ctypes.c_int64 * 4),
    ]


FUNCTIONS = {
    "llama_backend_init": (None, []),
    "llama_model_default_params": (Parameters, []),
    "llama_context_default_params": (Parameters, []),
    "llama_model_load_from_file": (ctypes.c_void_p, [ctypes.c_char_p, Parameters]),
    "llama_init_from_model": (ctypes.c_void_p, [ctypes.c_void_p, Parameters]),
    "llama_free": (None, [ctypes.c_void_p]),
    "llama_kv_cache_clear": (None, [ctypes.c_void_p]),
    "llama_batch_init": (Batch, [ctypes.c_int32] * 3),
    "llama_decode": (ctypes.c_int32, [ctypes.c_void_p, Batch]),
    "llama_get_logits_ith": (ctypes.POINTER(ctypes.c_float), [ctypes.c_void_p, ctypes.c_int32]),
}


class IkLlama(GgmlEngine):
    packages = ("gguf",)
    settings = {
        "gpt_oss": {
            "mxfp4+q8_0": f"experts MXFP4, others {Q8_0}; repacked",
            "mxfp4+q8_0@avx2": f"experts MXFP4, others {Q8_0}; repacked",
        }
    }

    @classmethod
    def versions(cls, library="") -> str:
        if not library:
            raise Skip("needs --library ik_llama.cpp=PATH of its libllama.so")
        return f"{library}, {super().versions()}"

    def load(self, path) -> None:
        self.api = ctypes.CDLL(self.library, ctypes.RTLD_GLOBAL)
        for name, (result, arguments) in FUNCTIONS.items():
            function = getattr(self.api, name)
            function.restype, function.argtypes = result, arguments
        self.api.llama_backend_init()
        self.model = self.api.llama_model_load_from_file(str(path).encode(), self.repacking())
        if not self.model:
            raise RuntimeError("it could not load the file")

    def repacking(self) -> Parameters:
        parameters = self.api.llama_model_default_params()
        begin = bytes(parameters).find(FLAGS)
        if begin < 0:
            raise Skip("this library has other model parameters than are known here")
        ctypes.memset(ctypes.addressof(parameters) + begin + len(FLAGS) - 1, 1, 1)
        return parameters

    def new_context(self, sequences):
        parameters = self.api.llama_context_default_params()
        if list(parameters.words[1:5]) != CONTEXT_DEFAULTS:
            raise Skip("this library has other context parameters than are known here")
        context = sequences * self.context  # of all sequences
        parameters.words[1:7] = [context + -context % 256, BATCH, BATCH, sequences, self.threads, self.threads]
        made = self.api.llama_init_from_model(self.model, parameters)
        if not made:
            raise RuntimeError("it could not make a context")
        return made

    def clear(self) -> None:
        self.api.llama_kv_cache_clear(self.llama)
