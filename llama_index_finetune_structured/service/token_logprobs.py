"""Log-probabilities of an answer's tokens in the form of OpenAI's chat completions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import ConfigurationError

if TYPE_CHECKING:
    from ..llms.local_calls import LocalCall

__all__ = ["TokenLogprobs"]

_LEAST = -9999.0  # what OpenAI sends for tokens that cannot be: JSON has no infinity


class TokenLogprobs:
    """The log-probabilities of a call's tokens, as far as its text is told. They are those before a grammar's mask."""

    def __init__(self, call: LocalCall, likeliest: int) -> None:
        """``likeliest``: how many other tokens are told at each place. The call has not begun."""
        self._call = call
        call.request.likeliest = likeliest
        self._told = self._bytes = 0

    def next(self, text: str, *, is_whole: bool = False) -> list[dict[str, Any]]:
        """Those of the tokens that more text has; ``text``: all of it. ``is_whole``: no more will follow.

        Tokens that a stop text cut off, are in no text.
        """
        shown, scores = len(text.encode()), self._call.request.scores
        tokens = list[dict[str, Any]]()
        while self._told < len(scores):
            if self._bytes >= shown and not (is_whole and not self._call.stops.is_set):
                break
            score = scores[self._told]
            token = self._token(score.token, score.log_probability)
            token["top_logprobs"] = [self._token(*one) for one in score.likeliest]
            tokens.append(token)
            self._told, self._bytes = self._told + 1, self._bytes + len(token["bytes"])
        return tokens

    def _token(self, token: int, log_probability: float) -> dict[str, Any]:
        model = self._call.model
        try:
            written = model.token_texts([token])[0]
        except ConfigurationError:  # no grammar can be made with this tokenizer
            written = str(model.tokenizer.decode([token])).encode()
        text = written.decode("utf-8", "replace")
        return {"token": text, "logprob": max(_LEAST, log_probability), "bytes": list(written)}
