"""Generation requests, their sampling settings and their results."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from ...errors import EngineError
from .token_probability import ScoredToken

if TYPE_CHECKING:
    from ..model.adapter_weights import AdapterWeights
    from .grammar import AnswerGrammar
    from .prompt_texts import PromptTexts
    from .reasoning import ReasoningLimit

__all__ = ["GenerationRequest", "GenerationResult", "Sampling", "sample_token"]


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen from its logits.

    ``temperature``: 0 takes the likeliest token (greedy). ``top_k``: draw among the k likeliest tokens; 0: among all.
    ``top_p``: draw among the likeliest tokens that together have this probability; 1: among all.
    ``seed``: equal logits give equal draws; None: PyTorch's global random state.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0


def sample_token(logits: torch.Tensor, sampling: Sampling, generator: torch.Generator | None = None) -> int:
    """Draw a token from logits [vocabulary] by temperature, ``top_k`` and ``top_p``. Not for greedy sampling.

    Raises EngineError where the likeliest token has no finite logit.
    """
    found = logits.float().cpu()
    likeliest, tokens = found.topk(min(sampling.top_k or len(found), len(found)))
    if not bool(likeliest[0].isfinite()):
        raise EngineError(
            "no token can be drawn: the model's logits are not finite, or exclude every token that is allowed. Reword "
            "the prompt, or use another base model"
        )
    # As doubles, and below 0: divided by the smallest temperature, the likeliest still has 0.
    scores = (likeliest - likeliest[0]).double() / sampling.temperature
    weights = torch.softmax(scores, dim=-1).float()
    before = weights.cumsum(-1) - weights
    before[0] = -1  # below any top_p: the likeliest one stays
    weights = weights.masked_fill(before >= sampling.top_p, 0)
    return int(tokens[torch.multinomial(weights, 1, generator=generator)])


@dataclass(frozen=True)
class GenerationResult:
    """Generated token ids without the stop token. ``finish_reason``: ``stop`` or ``length``.

    ``reasoning``: those before the answer, with what ends them. ``probabilities``: of each token and of the stop token,
    if any, the log-probability among the whole vocabulary and among the allowed tokens; empty where the request did not
    ask for them.
    """

    tokens: tuple[int, ...]
    finish_reason: str
    probabilities: tuple[tuple[float, float], ...] = ()
    reasoning: tuple[int, ...] = ()


@dataclass
class GenerationRequest:
    """One prompt to answer.

    ``prompt``: token ids. ``max_new_tokens``: token limit of the answer. ``grammar``: what the answer must match.
    ``texts``: what its grounded values may copy; None: none are grounded.
    ``reasoning``: what is written before the answer; None: nothing is.
    ``alternatives``: how many other beginnings of the answer are followed that may lead to a likelier one: where it is
    greedy and has a grammar that excluded much of it.
    ``probabilities``: whether the result has those of the tokens. ``likeliest``: how many of the likeliest tokens
    ``scores`` tells at the place of each token of the answer; None: ``scores`` stays empty. A token's are there before
    ``on_token`` is called for it.
    ``on_token``: called for each token of the answer as soon as no alternative can change it, in the thread that runs
    the model. ``on_reasoning``: the same for tokens before the answer.
    ``cancelled``: may be set by any thread; generation then ends at the next token.
    ``adapter``: whose answer it is; None: the model's as it was loaded.
    ``future``: ends with the result or with the error. ``call``: the same hashable for all requests of one call, so
    that they wait as one; None: the request is a call of its own. ``deadline``: by ``time.monotonic()``, when an answer
    that is not whole ends with an error; None: never.

    Raises ConfigurationError where no answer to the grammar fits in ``max_new_tokens``.
    """

    prompt: tuple[int, ...]
    max_new_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    grammar: AnswerGrammar | None = None
    texts: PromptTexts | None = None
    alternatives: int = 0
    probabilities: bool = False
    on_token: Callable[[int], None] | None = None
    cancelled: bool = False
    future: Future[GenerationResult] = field(default_factory=Future)
    call: object | None = None
    reasoning: ReasoningLimit | None = None
    on_reasoning: Callable[[int], None] | None = None
    deadline: float | None = None
    adapter: AdapterWeights | None = None
    likeliest: int | None = None
    scores: list[ScoredToken] = field(default_factory=list)

    @property
    def searches(self) -> bool:
        """Whether the likeliest answer is searched for."""
        return self.alternatives > 0 and self.sampling.is_greedy and self.grammar is not None

    @property
    def most_tokens(self) -> int:
        """Most tokens of reasoning and answer together."""
        if self.reasoning is None:
            return self.max_new_tokens
        return self.reasoning.tokens + len(self.reasoning.rules.closing) + self.max_new_tokens

    def __post_init__(self) -> None:
        if self.grammar is not None:
            self.grammar.require_room(self.max_new_tokens)
