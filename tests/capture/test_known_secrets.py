"""Masking the secrets in use hides nothing else, costs little whatever the text, and is the same in every thread."""

from __future__ import annotations

import base64
import dataclasses
import random
import sys
import threading
import time
from typing import Any

import pytest

from llama_index_finetune_structured.capture import redact_secrets
from llama_index_finetune_structured.capture.known_secrets import (
    mask_error,
    mask_remembered,
    mask_secrets,
    mask_values,
    remember_secret,
)

KEY = "plain-words-of-a-key"


def test_a_secret_that_is_given_again_is_masked_meanwhile_in_other_threads() -> None:
    remember_secret(KEY)
    ended = threading.Event()

    def give() -> None:
        while not ended.is_set():
            remember_secret(KEY)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    givers = [threading.Thread(target=give) for _ in range(2)]
    shown, end = set(), time.monotonic() + 0.5
    try:
        for giver in givers:
            giver.start()
        while time.monotonic() < end:
            shown.add(mask_remembered(KEY))
    finally:
        ended.set()
        for giver in givers:
            giver.join()
        sys.setswitchinterval(interval)
    assert shown == {"[KEY]"}


def test_a_picture_in_base64_is_searched_in_no_time_that_is_felt() -> None:
    remember_secret(KEY)
    rng = random.Random(1)
    picture = base64.b64encode(rng.randbytes(300_000)).decode()
    with_key = base64.b64encode(rng.randbytes(200_000) + KEY.encode() + rng.randbytes(100_000)).decode()
    start = time.perf_counter()
    assert mask_secrets(picture) == picture
    assert mask_secrets(f"{picture} {with_key}") == f"{picture} [KEY]"
    assert time.perf_counter() - start < 2  # 0.01 s where nothing else runs


def test_a_thousand_secrets_cost_milliseconds_a_text_also_when_each_text_brings_a_new_one() -> None:
    text = "The quick brown fox jumps over the lazy dog. " * 45
    for number in range(1_000):
        remember_secret(f"sk-{number:024}")
    mask_remembered(text)
    start = time.perf_counter()
    for number in range(10):
        remember_secret(f"rotated-{number:024}")
        assert mask_remembered(text) == text
    assert time.perf_counter() - start < 2  # 0.03 s where nothing else runs


@pytest.mark.parametrize("word", ["ollama", "lm-studio", "password", "not-needed"])
def test_a_key_that_is_a_word_hides_that_word_alone_and_changes_no_row(word: str) -> None:
    remember_secret(word)
    text = f"{word.capitalize()}, {word}s, un{word} and {word}-like"
    assert mask_secrets(text) == text
    assert mask_secrets(f"bad key {word}, no {word}") == "bad key [KEY], no [KEY]"
    assert redact_secrets(f"They ask about {word} often.") == f"They ask about {word} often."


def test_an_empty_secret_hides_nothing() -> None:
    assert mask_secrets("a, b", "") == "a, b"


def test_two_secrets_in_one_run_of_characters_are_both_masked() -> None:
    remember_secret(KEY)
    encoded = base64.b64encode(f"ab:{KEY}".encode()).decode()
    assert encoded[8:20] not in mask_secrets(f"{KEY}-{encoded}")


class Frozen(Exception):
    """An error that refuses to be changed."""

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(name)


@dataclasses.dataclass(frozen=True)
class FrozenData(Exception):
    """As data classes of errors are."""

    text: str


class Odd(Exception):
    exceptions = 5


@pytest.mark.parametrize("error", [Frozen(KEY), FrozenData(KEY), Odd(KEY)])
def test_an_error_of_any_class_is_masked_and_stays_the_error(error: Exception) -> None:
    remember_secret(KEY)
    mask_error(error)
    assert KEY not in f"{error} {error!r} {vars(error)}"


def test_a_reply_of_a_thousand_lists_in_each_other_is_masked_without_an_end_of_the_stack() -> None:
    remember_secret(KEY)
    deep: Any = KEY
    for _ in range(900):
        deep = [deep]
    assert KEY not in str(mask_values({"error": deep}))
    assert mask_values({"error": [[KEY]]}) == {"error": [["[KEY]"]]}
