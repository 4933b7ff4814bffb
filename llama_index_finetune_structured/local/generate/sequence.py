"""One answer during generation: its tokens, the state of its reasoning or grammar, and its draft tokens."""

from __future__ import annotations

import itertools
from collections.abc import Set
from concurrent.futures import InvalidStateError
from contextlib import suppress

import torch

from ...errors import EngineError
from .answer_search import AnswerBeginning, AnswerSearch
from .grammar import GrammarState
from .position_logits import NO_TOKEN, PositionLogits, likeliest_tokens
from .reasoning import ReasoningState
from .request import GenerationRequest, GenerationResult, sample_token
from .speculation import LONGEST_NGRAM, NGramIndex
from .token_probability import NotedToken, PositionProbabilities, token_scores

__all__ = ["GeneratedSequence"]

_MASKED = 16  # chosen: of more tokens the mask of all tells sooner which are allowed than asking one by one


class GeneratedSequence:
    """State of one request during generation.

    ``tokens``: reasoning and answer so far, without the stop token. ``length``: tokens of prompt and answer in the KV
    cache. ``drafts``: whether to propose draft tokens. ``searches``: whether the answer may go on from another token
    than its last, as the request may ask for.
    """

    def __init__(self, request: GenerationRequest, stop_ids: Set[int], *, searches: bool = True) -> None:
        self.request, self._stop_ids = request, stop_ids
        self.tokens: list[int] = []
        self.length = 0
        self.drafts = True
        self.ended = self.failed = False
        self._stop: int | None = None
        self._answer_at, self._most = 0, request.most_tokens  # tokens before the answer, and in all
        self._reasoning = None if request.reasoning is None else ReasoningState(request.reasoning)
        self._grammar = self._started_grammar() if self._reasoning is None else self._reasoning
        self._ngrams = NGramIndex(request.prompt)
        self._notes: list[NotedToken] = []  # of the answer's tokens, where they are wanted
        self._told = 0  # tokens that ``on_token`` and ``on_reasoning`` were called for
        most = request.alternatives if searches and request.searches else 0
        self._search = AnswerSearch(most) if most else None
        seed = request.sampling.seed
        self._random = None if seed is None else torch.Generator().manual_seed(seed)

    def _started_grammar(self) -> GrammarState | ReasoningState | None:
        grammar = self.request.grammar
        return None if grammar is None else grammar.start(self.request.max_new_tokens, self.request.texts)

    @property
    def wants_near(self) -> bool:
        """Whether the probabilities of tokens will be asked for."""
        wants = self.request.probabilities or self.request.likeliest is not None
        return wants or self._search is not None

    @property
    def pending(self) -> list[int]:
        """Tokens that are not in the KV cache yet, one at least."""
        return self.tokens[self.length - len(self.request.prompt) :]

    def draft(self) -> list[int]:
        """Draft tokens that may follow the last token.

        Tokens that are drawn at random are drafted too: each is drawn from its own logits, as without a draft, and
        the draft is taken as far as the draws agree with it.
        """
        if not self.drafts:
            return []
        last = [*self.request.prompt[-LONGEST_NGRAM:], *self.tokens[-LONGEST_NGRAM:]][-LONGEST_NGRAM:]
        matched, tokens = self._ngrams.draft(last)
        if self.request.grammar is not None:
            matched_answers, answer_tokens = self.request.grammar.answers.draft(last)
            tokens = answer_tokens if matched_answers > matched else tokens
        if self._grammar is not None:
            allowed, forced = self._grammar.allowed_start(tokens), self._grammar.forced()
            tokens = max(allowed, forced, self._grammar.copied(), key=len)
        return tokens[: self._most - len(self.tokens) - 1]

    def choose(self, scores: PositionLogits) -> int:
        """The next token by its scores: the likeliest that the grammar allows, or a random draw.

        While the grammar allows the likeliest, no mask is computed. Where the answer could not end inside its limit
        after the token, the first of the shortest end instead. Raises EngineError where the logits are not finite.
        """
        if scores.likeliest == NO_TOKEN:
            raise self._not_finite("the model's logits are NaN or infinite")
        token, masked = self._preferred(scores)
        if self._grammar is not None:
            token = self._grammar.within_limit(token)
        if self.wants_near and self._reasoning is None:
            self._note(token, scores, masked)
        return token

    def _note(self, token: int, scores: PositionLogits, masked: torch.Tensor | None) -> None:
        """Note what is known of the chosen token, and of the others that the answer may go on with."""
        if masked is None and len(scores.near) > _MASKED:
            masked = self._masked(scores.logits)
        found, likeliest = PositionProbabilities(scores, masked, self._allows), self.request.likeliest

        def noted(one: int, probabilities: tuple[float, float]) -> NotedToken:
            return NotedToken(
                *probabilities, None if likeliest is None else token_scores(one, scores.logits, likeliest)
            )

        own = noted(token, found.of(token))
        if self._search is not None:
            beside = found.beside(token, self.request.alternatives)
            others = {other: noted(other, probabilities) for other, probabilities in beside.items()}
            self._search.take(own, others, self.tokens, self._notes)
        self._notes.append(own)

    def _preferred(self, scores: PositionLogits) -> tuple[int, torch.Tensor | None]:
        """The next token, and the masked logits [vocabulary] where they had to be computed."""
        if not self.request.sampling.is_greedy:
            masked = self._masked(scores.logits)
            return sample_token(masked, self.request.sampling, self._random), masked
        if self._allows(scores.likeliest):
            return scores.likeliest, None
        masked = self._masked(scores.logits)
        token = int(likeliest_tokens(masked))
        if token == NO_TOKEN:
            raise self._not_finite("the model excludes every token that the grammar allows")
        return token, masked

    def _allows(self, token: int) -> bool:
        return self._grammar is None or self._grammar.allows(token)

    def _not_finite(self, what: str) -> EngineError:
        return EngineError(
            f"{what} after {len(self.tokens)} tokens of the answer, so no token can be chosen: the model's weights "
            "or activations overflow at a token of this prompt or answer. Reword the prompt, train with a lower "
            "learning_rate, or use another base model"
        )

    def append(self, token: int) -> bool:
        """Append a token to the answer; a stop token, the token limit or a cancelled request ends it.

        Returns whether the next token is one that follows it: not where the answer has ended, or goes on from another
        beginning, which may become a likelier one.
        """
        if self._grammar is not None:
            self._grammar.append(token)
        if token in self._stop_ids:
            self._stop = token
        else:
            self.tokens.append(token)
            self._ngrams.add(token)
            self._tell()
            if self._reasoning is not None and self._reasoning.has_ended:
                self._begin_answer()
        is_whole = self._stop is not None or len(self.tokens) >= self._most
        if self.request.cancelled or (is_whole and self._search is None):
            self._finish()
        elif self._search is not None and (is_whole or self._search.is_beaten):
            self._end(self._search)
        else:
            return True
        return False

    def _tell(self) -> None:
        """Tell the request the tokens that are decided."""
        request, decided = self.request, len(self.tokens)
        if self._search is not None and not self.ended:
            decided = self._told if self._search.best is not None else self._search.decided(decided)
        tokens, self._told = self.tokens[self._told : decided], max(self._told, decided)
        if self._reasoning is None and request.likeliest is not None:
            notes = self._notes[len(request.scores) : self._told - self._answer_at]
            request.scores += [note.scores for note in notes if note.scores is not None]
        on_token = request.on_token if self._reasoning is None else request.on_reasoning
        if on_token is not None:
            for token in tokens:
                on_token(token)

    def _end(self, search: AnswerSearch) -> None:
        """End this answer, and go on from the likeliest other beginning, or finish with the likeliest answer."""
        if self._stop is not None or (self._grammar is not None and self._grammar.is_complete):
            search.end(self.tokens, self._notes, self._stop)
        while search.best is not None and (beginning := search.follow()) is not None:
            if self._goes_on_from(beginning, search):
                return
        if search.best is not None:
            _, self.tokens, self._notes, self._stop = search.best
        self._finish()

    def _goes_on_from(self, beginning: AnswerBeginning, search: AnswerSearch) -> bool:
        """Whether an answer with this beginning has to be written; it then is the one that is being written.

        Not where it is whole, or could not end within its limit.
        """
        kept, token = beginning.tokens[: beginning.length], beginning.token
        if token in self._stop_ids:
            search.end(kept, beginning.notes, token)
            return False
        grammar = self._started_grammar()
        assert isinstance(grammar, GrammarState)  # what searches has one
        for each in kept[self._answer_at :]:
            grammar.append(each)
        if grammar.within_limit(token) != token:
            return False
        grammar.append(token)
        common = (one == other for one, other in zip(kept, self.tokens, strict=False))
        shared = sum(1 for _ in itertools.takewhile(bool, common))
        self.length = min(self.length, len(self.request.prompt) + shared)
        self._grammar, self.tokens, self._notes = grammar, [*kept, token], beginning.notes
        self._stop = None
        self._ngrams.add(token)
        if len(self.tokens) < self._most:
            return True
        search.end(self.tokens, self._notes, None)
        return False

    def _begin_answer(self) -> None:
        self._reasoning, self._grammar = None, self._started_grammar()
        self._answer_at = len(self.tokens)
        self._most = self._answer_at + self.request.max_new_tokens

    def fail(self, error: BaseException) -> None:
        """End with an error."""
        self.ended = self.failed = True
        with suppress(InvalidStateError):  # its time is over
            self.request.future.set_exception(error)

    def _finish(self) -> None:
        self.ended = True
        self._tell()
        at = len(self.tokens) if self._reasoning is not None else self._answer_at
        reasoning, answer = self.tokens[:at], self.tokens[at:]
        if self.request.grammar is not None and self._stop is not None:
            context = [*self.request.prompt[-LONGEST_NGRAM:], *reasoning[-LONGEST_NGRAM:]][-LONGEST_NGRAM:]
            self.request.grammar.answers.add([*context, *answer, self._stop])
        is_searched = self._search is not None and self._search.best is not None
        is_complete = is_searched or (self._grammar is not None and self._grammar.is_complete)
        reason = "length" if self._stop is None and not is_complete else "stop"
        probabilities = tuple(note[:2] for note in self._notes) if self.request.probabilities else ()
        with suppress(InvalidStateError):  # its time is over
            self.request.future.set_result(
                GenerationResult(tuple(answer), reason, probabilities, tuple(reasoning))
            )

    def _masked(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits [vocabulary] on the CPU, minus infinity where the grammar does not allow the token."""
        if self._grammar is None:
            return logits
        return logits.masked_fill(~self._grammar.mask(), float("-inf"))
