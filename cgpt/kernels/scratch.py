"""Kernel contexts for calls outside a model's step, such as sampling."""

import threading

from cgpt.kernels import _kernels

_local = threading.local()


def thread_context(threads: int = 1) -> _kernels.Context:
    """The calling thread's own context, whose kernels run on `threads` threads. Its scratch memory stays for the next
    call: for sampling up to 24 bytes a token of the vocabulary and thread."""
    contexts: dict[int, _kernels.Context] = _local.__dict__.setdefault("contexts", {})
    if threads not in contexts:
        contexts[threads] = _kernels.Context(threads, "exact")
    return contexts[threads]
