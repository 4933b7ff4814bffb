"""What a caller asks of a loaded model, and what comes back."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .sampling import Sampling

if TYPE_CHECKING:
    from .grammar import AnswerGrammar

__all__ = ["Answer", "Request"]


@dataclass(frozen=True)
class Answer:
    """Generated token ids, without the stop token, and why they ended: ``stop`` or ``length``."""

    tokens: tuple[int, ...]
    finish_reason: str


@dataclass
class Request:
    """One prompt to answer. ``on_token`` is called from the model's thread for each token."""

    prompt: tuple[int, ...]
    max_new_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    grammar: AnswerGrammar | None = None
    on_token: Callable[[int], None] | None = None
    cancelled: bool = False
    answer: Future[Answer] = field(default_factory=Future)
