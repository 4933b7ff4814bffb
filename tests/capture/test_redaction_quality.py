"""How much redaction finds and how little else it changes, on generated texts; the figures are those of the docs."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_index.core.llms import ChatMessage

from llama_index_finetune_structured.capture import capture, read_examples
from llama_index_finetune_structured.capture.redaction import redact_record, redact_row, redact_secrets
from tests.capture.fakes import EchoLLM
from tests.capture.hard_secrets import HARD
from tests.capture.innocent_texts import PROSE, innocents
from tests.capture.secret_corpus import Planted, planted

PLANTED = list(planted())
INNOCENTS = list(innocents())


def _found(row: Planted) -> bool:
    return row.secret not in redact_secrets(row.text)


def test_the_corpus_has_as_many_kinds_and_contexts_as_the_documentation_says() -> None:
    kinds = Counter(row.kind for row in PLANTED)
    assert len(kinds) >= 120
    assert min(kinds.values()) >= 10
    assert len(INNOCENTS) >= 500
    assert all(row.secret in row.text for row in PLANTED)


def test_at_least_95_of_100_planted_secrets_are_found_and_half_of_each_kind() -> None:
    missed = [row for row in PLANTED if not _found(row)]
    assert len(missed) <= 0.05 * len(PLANTED), [row.text for row in missed][:20]
    kinds = Counter(row.kind for row in PLANTED)
    worst = {kind: n for kind, n in Counter(row.kind for row in missed).items() if n > kinds[kind] / 2}
    assert worst == {}


def test_at_least_99_of_100_innocent_texts_stay_as_they_are() -> None:
    changed = [text for text in INNOCENTS if redact_secrets(text) != text]
    assert len(changed) <= 0.01 * len(INNOCENTS), changed


def test_keys_that_the_rules_were_not_made_with_are_found_as_well() -> None:
    rows = [row for row in planted(seed=20_261) if not _found(row)]
    assert len(rows) <= 0.05 * len(PLANTED), [row.text for row in rows][:20]


def test_four_of_five_hard_forms_are_found_as_the_documentation_says() -> None:
    missed = [text for text, secret in HARD if secret in redact_secrets(text)]
    assert len(HARD) == 50
    assert len(missed) <= 10, missed


def test_a_second_pass_changes_nothing() -> None:
    for row in PLANTED:
        once = redact_secrets(row.text)
        assert redact_secrets(once) == once


texts = st.one_of(st.sampled_from([row.text for row in PLANTED]), st.sampled_from(INNOCENTS), st.text())


@settings(max_examples=100, deadline=None)
@given(st.lists(texts, max_size=4), st.sampled_from([" ", "\n", "", ", ", '": "']))
def test_joined_texts_are_redacted_in_one_pass_and_never_fail(parts: list[str], joint: str) -> None:
    once = redact_secrets(joint.join(parts))
    assert redact_secrets(once) == once


def test_a_text_of_two_kilobytes_takes_milliseconds() -> None:
    text = (" ".join(PROSE) * 2)[:2_000]
    redact_secrets(text)
    start = time.perf_counter()
    for _ in range(5):
        redact_secrets(text)
    assert (time.perf_counter() - start) / 5 < 0.1  # 4 ms where nothing else runs


@pytest.mark.parametrize(
    "unit", ["a", "1", "+1 ", "password ", "--", "://a:", "0 1", "key=", "-----BEGIN PRIVATE KEY"]
)
def test_no_long_text_takes_more_than_seconds(unit: str) -> None:
    start = time.perf_counter()
    redact_secrets((unit * 20_000)[:20_000])
    assert time.perf_counter() - start < 5


def test_the_detectors_are_imported_only_when_a_text_is_redacted() -> None:
    code = (
        "import sys; from llama_index_finetune_structured.capture import capture, redact_secrets; "
        "from llama_index_finetune_structured.capture import error_text; "
        "heavy = lambda: [m for m in sys.modules if m.startswith(('detect_secrets', 'phonenumbers'))]; "
        "assert heavy() == [], heavy(); redact_secrets('password: tiger7xx'); assert heavy()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("row", "redacted"),
    [
        ({"password": ["tiger7xx", "b!2yyy"]}, {"password": ["[SECRET]", "[SECRET]"]}),
        ({"api_key": {"value": "plainwords"}}, {"api_key": {"value": "[SECRET]"}}),
        ({"clientSecret": {"of": [{"x": "plainwords"}]}}, {"clientSecret": {"of": [{"x": "[SECRET]"}]}}),
        ({"passwords": "correct horse battery"}, {"passwords": "[SECRET]"}),
        ({"password": "required"}, {"password": "required"}),
        ({"password": None, "pass": True}, {"password": None, "pass": True}),
        ({"token": "walking"}, {"token": "walking"}),
        ({"token": {"text": "walking", "lemma": "walk"}}, {"token": {"text": "walking", "lemma": "walk"}}),
        ({"token": "9f8a7b6c5d4e3f2a"}, {"token": "[SECRET]"}),
        ({"tokens": ["a", "b"], "max_tokens": 12}, {"tokens": ["a", "b"], "max_tokens": 12}),
    ],
)
def test_values_of_any_shape_go_under_the_name_of_a_secret(row: Any, redacted: Any) -> None:
    assert redact_row(row, redact_secrets, numbers=False) == redacted
    assert redact_row(redacted, redact_secrets, numbers=False) == redacted
    deep: Any = row
    expected: Any = redacted
    for _ in range(50):
        deep, expected = {"a": [deep]}, {"a": [expected]}
    assert redact_row(deep, redact_secrets, numbers=False) == expected


SCHEMA = {
    "type": "object",
    "properties": {
        "ada@example.com": {"type": "integer"},
        "api_key": {"enum": ["abcdef123456", "on request"]},
        "token": {"const": "AKIAIOSFODNN7EXAMPLE"},
    },
    "required": ["ada@example.com"],
}


def test_names_and_constants_of_the_schema_stay_so_that_the_answer_fits() -> None:
    answer = {"ada@example.com": 4111111111111111, "api_key": "abcdef123456", "token": "AKIAIOSFODNN7EXAMPLE"}
    record = {
        "messages": [{"role": "user", "content": "write to ada@example.org"}],
        "answer": {"content": json.dumps(answer)},
        "answer_schema": SCHEMA,
    }
    redacted = redact_record(record, redact_secrets)
    assert redacted["answer_schema"] == SCHEMA
    assert json.loads(redacted["answer"]["content"]) == answer
    assert redacted["messages"][0]["content"] == "write to [EMAIL]"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "password", "token", "api_key", "n"]), inner, max_size=3)
    ),
    max_leaves=12,
)


def _numbers(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [number for item in value.values() for number in _numbers(item)]
    if isinstance(value, list):
        return [number for item in value for number in _numbers(item)]
    return [value] if isinstance(value, int | float) or value is None else []


@settings(max_examples=100, deadline=None)
@given(json_values)
def test_an_answer_keeps_its_numbers_and_a_second_pass_changes_nothing(value: Any) -> None:
    once = redact_row(value, redact_secrets, numbers=False)
    assert _numbers(once) == _numbers(value)
    assert redact_row(once, redact_secrets, numbers=False) == once


def test_the_keys_in_use_are_redacted_from_captures_whatever_their_form(tmp_path: Path) -> None:
    from llama_index_finetune_structured import hosted_llm

    hosted_llm("m", api_base="http://127.0.0.1:9/v1", api_key="plain-words-alone")
    with capture(tmp_path / "c.jsonl", redact=True):
        EchoLLM(reply="it is plain-words-alone").chat([ChatMessage(content="say plain-words-alone")])
    assert "plain-words" not in (tmp_path / "c.jsonl").read_text()
    (example,) = read_examples(tmp_path / "c.jsonl")
    assert example.answer_text() == "it is [KEY]"


def test_keys_of_the_environment_are_redacted_from_captures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_API_KEY", "plain-words-alone-7")
    monkeypatch.setenv("SORT_KEY", "release_year")
    with capture(tmp_path / "c.jsonl", redact=True):
        EchoLLM(reply="release_year plain-words-alone-7").complete("x")
    (example,) = read_examples(tmp_path / "c.jsonl")
    assert example.answer_text() == "release_year [KEY]"
