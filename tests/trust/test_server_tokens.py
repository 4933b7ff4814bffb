"""A server's log-probabilities become the trust in its reply, whatever its tokens are cut like."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat.chat_completion_token_logprob import ChatCompletionTokenLogprob, TopLogprob

from llama_index_finetune_structured.trust.server_tokens import trust_in_reply

TEXT = '{"name":"Zoë 颜色","warm":true}'


def token(
    written: bytes | str,
    logprob: float = -0.1,
    others: dict[str, float] | None = None,
    *,
    is_told: bool = True,
) -> Any:
    raw = written.encode() if isinstance(written, str) else written
    name = raw.decode("utf-8", "replace")
    tops = {name: logprob, **(others or {})}
    return ChatCompletionTokenLogprob(
        token=name,
        bytes=list(raw) if is_told else None,
        logprob=logprob,
        top_logprobs=[TopLogprob(token=one, bytes=None, logprob=score) for one, score in tops.items()],
    )


def cut(raw: bytes, places: set[int]) -> list[bytes]:
    edges = [0, *sorted(place for place in places if 0 < place < len(raw)), len(raw)]
    return [raw[start:stop] for start, stop in pairwise(edges)]


@given(
    places=st.sets(st.integers(1, 40)), before=st.sampled_from(["", " ", "<think>{}</think>", "```json\n"])
)
def test_every_cut_into_tokens_gives_every_field_its_tokens(places: set[int], before: str) -> None:
    """Within characters too, where the server tells the bytes."""
    pieces = cut(TEXT.encode(), places)
    sent = [token(before, -5.0)] * bool(before) + [token(piece) for piece in pieces] + [token("<|end|>")]
    trust = trust_in_reply(TEXT, sent, is_greedy=False)
    assert trust is not None
    assert trust.tokens is not None
    assert [field.path for field in trust.fields] == [("name",), ("warm",)]
    assert trust.tokens.total == pytest.approx(-0.1 * len(pieces))
    assert all(field.writing and field.writing.total <= -0.1 + 1e-9 for field in trust.fields)


@given(places=st.sets(st.integers(1, 40), max_size=12))
def test_characters_that_a_server_sends_in_parts_without_bytes_are_found_again(places: set[int]) -> None:
    pieces = cut(TEXT.encode(), places)
    trust = trust_in_reply(TEXT, [token(piece, is_told=False) for piece in pieces], is_greedy=True)
    assert trust is not None
    spelled = sum(
        len(piece) for piece in pieces if b"\xef\xbf\xbd" not in piece.decode("utf-8", "replace").encode()
    )
    if spelled >= 0.8 * len(TEXT.encode()):
        assert trust.tokens is not None
        assert trust.tokens.total == pytest.approx(-0.1 * len(pieces))


def test_spaces_that_a_server_loses_are_found_again() -> None:
    sent = [token(piece, is_told=False) for piece in ('{"name":"', "red", "wine", '"}')]
    trust = trust_in_reply('{"name":"red wine"}', sent, is_greedy=True)
    assert trust is not None
    assert trust.fields[0].writing is not None
    assert trust.fields[0].writing.total == pytest.approx(-0.4)


@pytest.mark.parametrize("sent", [None, [], [token("something"), token("else")]])
def test_without_the_texts_own_tokens_only_the_values_are_known(sent: list[Any] | None) -> None:
    trust = trust_in_reply(TEXT, sent, is_greedy=True)
    assert trust is not None
    assert [field.value for field in trust.fields] == ["Zoë 颜色", True]
    assert trust.tokens is None
    assert [field.writing for field in trust.fields] == [None, None]


@pytest.mark.parametrize("text", ["", "no JSON", '{"name":"cut'])
def test_a_reply_without_json_has_no_trust(text: str) -> None:
    assert trust_in_reply(text, [token(text)], is_greedy=True) is None


def _scores(one: Any, *, is_greedy: bool) -> tuple[float, float]:
    trust = trust_in_reply('{"a":1}', [token('{"a":', 0.0), one, token("}", 0.0)], is_greedy=is_greedy)
    assert trust is not None
    writing = trust.fields[0].writing
    assert writing is not None
    return math.exp(writing.unmasked), math.exp(writing.total)


def test_what_was_likelier_than_a_greedily_chosen_token_was_forbidden() -> None:
    one = token("1", math.log(0.2), {"I": math.log(0.6), "2": math.log(0.1)})
    assert _scores(one, is_greedy=True) == pytest.approx((0.2 / 0.9, 0.2 / 0.3))
    assert _scores(one, is_greedy=False) == pytest.approx((0.2 / 0.9, 0.2 / 0.9))


def test_what_is_spread_over_the_vocabulary_does_not_count() -> None:
    spread = {f"x{n}": math.log(1e-5) for n in range(19)}
    assert _scores(token("1", math.log(0.9), spread), is_greedy=True) == pytest.approx((1.0, 1.0))


@pytest.mark.parametrize("logprob", [-9999.0, -math.inf, math.nan])
def test_impossible_numbers_are_finite_in_json(logprob: float) -> None:
    trust = trust_in_reply('{"a":1}', [token('{"a":1}', logprob, {"x": -0.1})], is_greedy=False)
    assert trust is not None
    assert json.loads(trust.model_dump_json())["tokens"]["total"] == -1000


def test_a_server_of_tokens_alone_has_its_numbers_taken_as_they_are() -> None:
    assert _scores(token("1", math.log(0.3)), is_greedy=True) == pytest.approx((0.3, 0.3))


def test_the_end_of_a_bare_number_is_told_by_the_token_behind_it() -> None:
    trust = trust_in_reply("12", [token("12", -0.2), token("", -0.5, {"3": -1.0})], is_greedy=False)
    assert trust is not None
    assert trust.tokens is not None
    assert trust.tokens.total < -0.2 - 0.4
