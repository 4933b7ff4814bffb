"""Every error this package raises, in one tree.

FinetuneStructuredError
├── DatasetError (also ValueError)         a training file or row is invalid: file, line, what was expected
├── CaptureError (also RuntimeError)       a capture could not be opened or read
├── ConfigurationError (also ValueError)   a setting, path or model name is invalid
│   └── MissingDependencyError (also ImportError)   an extra is not installed
├── EngineError (also RuntimeError)        a fine-tuning run or a local model failed, or a run was cancelled or late
│   ├── CheckpointError (also OSError)     a checkpoint could not be written or read
│   ├── QueueFullError                     a local model has as many calls as it may have; nothing was generated
│   └── RequestTimeoutError (also TimeoutError)  a call of a local model took longer than it may
├── ServiceError (also RuntimeError)       a hosted service refused a request or did not answer
├── PromptTooLongError (also RuntimeError)   a prompt leaves no room for an answer in the context window
├── StructuredAnswerError (also ValueError)  a model's answer does not match the requested schema
└── ParityError (also ValueError)          an exported model's answers differ from its adapter's
"""

from __future__ import annotations

from functools import partial
from typing import Any

from .printable import printable

__all__ = [
    "CaptureError",
    "CheckpointError",
    "ConfigurationError",
    "DatasetError",
    "EngineError",
    "FinetuneStructuredError",
    "MissingDependencyError",
    "ParityError",
    "PromptTooLongError",
    "QueueFullError",
    "RequestTimeoutError",
    "ServiceError",
    "StructuredAnswerError",
]


class FinetuneStructuredError(Exception):
    """Base of all errors of this package. Its text is printable: messages hold names and servers' replies."""

    def __str__(self) -> str:
        return printable(super().__str__())


class DatasetError(FinetuneStructuredError, ValueError):
    """A training file or row is invalid; the message starts with ``file:line`` where there is one."""


class CaptureError(FinetuneStructuredError, RuntimeError):
    """A capture could not be opened or read."""


class ConfigurationError(FinetuneStructuredError, ValueError):
    """A setting, path or model name is invalid."""


class MissingDependencyError(ConfigurationError, ImportError):
    """An optional dependency is missing; the message names the extra that installs it.

    Args:
        package: Name of the missing package.
        extra: Extra of this package that installs it.
        purpose: What needs it; the message begins with this.
    """

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package '{package}', which is not installed: "
            f"pip install 'llama-index-finetune-structured[{extra}]'"
        )
        self._made_of = (package, extra, purpose)

    def __reduce__(self) -> tuple[Any, ...]:
        """For copies and for pools of processes, which would call the class with ``args``, the message."""
        return type(self), self._made_of, self.__dict__


class EngineError(FinetuneStructuredError, RuntimeError):
    """A fine-tuning run failed, was cancelled or ran out of time; or a local model's logits are not finite."""


class CheckpointError(EngineError, OSError):
    """A checkpoint could not be written or read."""


class QueueFullError(EngineError):
    """A local model has as many calls as ``max_queue`` allows. Nothing was generated; a later call may be answered."""


class RequestTimeoutError(EngineError, TimeoutError):
    """A call of a local model took longer than ``request_timeout``; its generation has been stopped."""


class ServiceError(FinetuneStructuredError, RuntimeError):
    """A hosted service refused a request or did not answer.

    Args:
        message: What was requested and what the service replied.
        refused: True where the service rejected the request, so that a retry cannot help. Also an attribute.
    """

    def __init__(self, message: str, *, refused: bool) -> None:
        super().__init__(message)
        self.refused = refused

    def __reduce__(self) -> tuple[Any, ...]:
        """For copies and for pools of processes, which would leave ``refused`` out."""
        return partial(type(self), refused=self.refused), self.args, self.__dict__


class PromptTooLongError(FinetuneStructuredError, RuntimeError):
    """A prompt leaves no room for an answer in the context window.

    Not a ValueError: LlamaIndex's refine and compact modes log those and go on without the piece of text.
    """


class StructuredAnswerError(FinetuneStructuredError, ValueError):
    """A model's answer does not match the requested schema."""


class ParityError(FinetuneStructuredError, ValueError):
    """An exported or served model's answers differ from those of the adapter it was made from."""
