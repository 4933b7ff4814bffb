"""Log-probabilities that a server sends with a reply, in the form of OpenAI's chat completions -> trust in the reply.

What a server's numbers are, by their sources: llama.cpp gives the logarithm of the softmax over the whole vocabulary,
before grammar and temperature; vLLM applies the grammar's mask first; OpenAI does not say, and SGLang was not looked
at. A greedy reply tells the difference: a token that was likelier than the chosen one must have been forbidden.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from ..example import json_span, loads
from .answer_trust import Trust, merged_trust, trust_in_tokens
from .tokens import AnswerToken

__all__ = ["trust_in_reply"]

# As for a local model's tokens (``local/generate/token_probability.py``), so that one calibration serves both: tokens
# further below the likeliest do not count.
_NEAR = 7.0
_LEAST = -9999.0  # what vLLM sends for minus infinity, which JSON does not have
_UNKNOWN = "\N{REPLACEMENT CHARACTER}".encode()  # for a token that holds a part of a character
_GAP = 64  # chosen: most bytes of a text that tokens of unknown spelling are taken to have
_FOUND = 0.8  # chosen: share of a text that its tokens must spell, else they are those of another text


def trust_in_reply(content: str, sent: Sequence[Any] | None, *, is_greedy: bool) -> Trust | None:
    """The trust in a reply, without probabilities yet; None where it has no JSON.

    ``sent``: ``logprobs.content`` of the reply's choice; without it, or where it is not of this text, the values are
    all that is known. ``is_greedy``: whether the likeliest allowed token was chosen each time.
    """
    try:
        text = json_span(content)
        value = loads(text)
    except ValueError:
        return None
    tokens = _answer_tokens(text, sent or (), is_greedy)
    trust = trust_in_tokens(text, tokens) if tokens else None
    return merged_trust(value, []) if trust is None else trust


def _answer_tokens(text: str, sent: Sequence[Any], is_greedy: bool) -> list[AnswerToken]:
    """The tokens of the text; none where they cannot be told."""
    spelled = [_written(token) for token in sent]
    return [
        AnswerToken(written, *_log_probabilities(sent[n], is_greedy))
        for n, written in _aligned(text.encode(), spelled)
    ]


def _written(token: Any) -> bytes:
    """The bytes of a token: the server's where they are told, for a token may hold a part of a character."""
    told = getattr(token, "bytes", None)
    return (token.token or "").encode("utf-8", "replace") if told is None else bytes(told)


def _aligned(text: bytes, spelled: Sequence[bytes]) -> list[tuple[int, bytes]]:
    """Index and bytes of the tokens that spell a text; none where they do not.

    Tokens before it (of reasoning, a code fence) and behind it are left out. A scalar's end is only told by the token
    behind it, which stays.
    """
    start = b"".join(spelled).rfind(text)
    if start < 0:
        return _loosely_aligned(text, spelled)
    stop, at = start + len(text), 0
    found = list[tuple[int, bytes]]()
    for n, written in enumerate(spelled):
        begin, at = at, at + len(written)
        is_behind = begin >= stop and (text[-1:] in b'}]"' or begin > stop)
        if (at > start or begin > start) and not is_behind:
            found.append((n, written[max(0, start - begin) :]))
    return found


def _loosely_aligned(text: bytes, spelled: Sequence[bytes]) -> list[tuple[int, bytes]]:
    """As ``_aligned``, for servers that decode every token alone, and so lose spaces and parts of characters.

    What stands between two tokens that are found is the second one's.
    """
    at, spelling = 0, 0
    found = list[tuple[int, bytes]]()
    for n, written in enumerate(spelled):
        place = -1 if not written or _UNKNOWN in written else text.find(written, at, at + _GAP + len(written))
        if place < 0:
            found.append((n, b""))
            continue
        spelling += len(written)
        stop = place + len(written)
        found.append((n, text[at:stop]))
        at = stop
    return found if at == len(text) and spelling >= _FOUND * len(text) else []


def _log_probabilities(token: Any, is_greedy: bool) -> tuple[float, float]:
    """Log-probabilities of a token, among all tokens and among those that a grammar may have allowed."""
    own = _number(token.logprob)
    others = list(_others(token, own))
    unmasked = _among(own, others) if others else own
    if not (is_greedy and others):
        return unmasked, unmasked
    return unmasked, _among(own, [one for one in others if one <= own])


def _others(token: Any, own: float) -> Iterator[float]:
    """Log-probabilities of the other tokens that were likely at its place."""
    is_itself_left = True
    for one in getattr(token, "top_logprobs", None) or ():
        number = _number(one.logprob)
        if is_itself_left and one.token == token.token and math.isclose(number, own, abs_tol=1e-4):
            is_itself_left = False
            continue
        yield number


def _among(own: float, others: Sequence[float]) -> float:
    """Of a token among others."""
    highest = max([own, *others])
    near = [one for one in others if one > highest - _NEAR]
    return own - highest - math.log(sum(math.exp(one - highest) for one in [own, *near]))


def _number(logprob: float | None) -> float:
    return _LEAST if logprob is None or math.isnan(logprob) else min(0.0, max(_LEAST, logprob))
