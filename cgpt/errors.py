"""The exceptions cgpt raises. Each message says what was wrong, where, and what to do about it."""

from typing import Any


class CgptError(Exception):
    """Base of every exception that cgpt raises on purpose."""


class CheckpointError(CgptError, ValueError):
    """A checkpoint file or tensor is missing, damaged, or not what its config promises."""


class CheckpointReadError(CheckpointError):
    """A part of a checkpoint could not be read when it was needed. The model can be used again."""


class ConfigError(CgptError, ValueError):
    """config.json asks for something cgpt does not support, or contradicts itself."""


class TokenizerError(CgptError, ValueError):
    """A tokenizer file is missing or damaged, or the model has no tokenizer."""


class InputError(CgptError, ValueError):
    """An argument of a call cannot be used."""


class EmptyPromptError(InputError):
    """A prompt holds no token."""


class TokenIdError(InputError):
    """A token id lies outside the vocabulary."""


class ContextLengthError(InputError):
    """A sequence would grow beyond the positions the model has."""


class ChatError(InputError):
    """The model has no chat format."""


class ModelClosed(InputError):
    """The model was closed, and its weights are gone."""


class NumericsError(CgptError, ArithmeticError):
    """NaN or infinity came out of the model.

    caches: the KVCaches of the sequences for which it did
    """

    def __init__(self, message: str, caches: tuple[Any, ...] = ()) -> None:
        super().__init__(message)
        self.caches = caches


class KernelError(CgptError, RuntimeError):
    """A kernel refused its arguments; this is a defect of cgpt, not of the input."""


class OutOfMemoryError(CgptError, MemoryError):
    """A model, a sequence or a step needs more memory than there is."""


class QueueFull(CgptError, RuntimeError):
    """The engine has as many requests as it takes; submit them again later."""


class OutputError(CgptError, OSError):
    """A file of results cannot be opened, or written."""


class EngineClosed(CgptError, RuntimeError):
    """The engine is shutting down and takes no more requests, or has not finished this one."""
