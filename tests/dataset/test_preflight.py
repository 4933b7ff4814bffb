"""Preflight check: every problem with file, line and code; exact trained tokens; never an exception."""

from __future__ import annotations

import json
import re
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from llama_index_finetune_structured.dataset import FinetuneDataset, check
from llama_index_finetune_structured.dataset.checks.problems import FIXES
from llama_index_finetune_structured.dataset.checks.targets import TokenisedRow, TrainingTarget, target_named
from llama_index_finetune_structured.errors import ConfigurationError, DatasetError
from llama_index_finetune_structured.example import Example, Message
from llama_index_finetune_structured.local.model.prompts import PromptForm
from tests.dataset.tiny_base import tiny_base

PYTHON_ERROR = re.compile(r"(Attribute|Type|Key|Index|Value)Error")
USER = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}


class Song(BaseModel):
    title: str


def call(name: str = "f", arguments: Any = "{}", number: str = "1") -> dict[str, Any]:
    return {"id": number, "type": "function", "function": {"name": name, "arguments": arguments}}


def calling(*calls: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": list(calls)}


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
SONG = FinetuneDataset.from_pairs([("q", Song(title="One"))])[0]


def line(example: Example, **changes: Any) -> str:
    return json.dumps(json.loads(example.to_json()) | changes)


BAD_LINES = {
    "not_utf8": b'{"messages": "\xff"}',
    "not_json": b'{"messages": [',
    "too_deep": b"[" * 50_000,
    "not_an_object": b"[1, 2]",
    "unknown_format": b'{"query": "q", "response": "r"}',
    "wrong_format": b'{"inputs": "prompt and answer"}',
    "bad_message": json.dumps({"messages": [{"role": "wizard"}, ANSWER]}).encode(),
    "zero_trained": json.dumps({"messages": [USER, ANSWER | {"weight": 0}]}).encode(),
    "empty_answer": json.dumps({"messages": [USER, ANSWER | {"content": "  "}]}).encode(),
    "tool_arguments": json.dumps(
        {"messages": [USER, calling(call(arguments={"a": 1}))], "tools": [TOOL]}
    ).encode(),
    "unknown_tool": json.dumps({"messages": [USER, calling(call("g"))], "tools": [TOOL]}).encode(),
    "orphan_tool_message": json.dumps(
        {"messages": [USER, {"role": "tool", "content": "r", "tool_call_id": "9"}, ANSWER]}
    ).encode(),
    "answer_cut": json.dumps({"messages": [USER | {"content": "word " * 70_000}, ANSWER]}).encode(),
}


def good_lines(count: int) -> list[bytes]:
    return [json.dumps({"messages": [USER | {"content": f"q{n}"}, ANSWER]}).encode() for n in range(count)]


@pytest.mark.parametrize("code", BAD_LINES)
def test_each_fault_is_reported_with_file_line_code_and_fix(tmp_path: Path, code: str) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(b"\n".join([*good_lines(10), b"", BAD_LINES[code]]))
    before = path.read_bytes()
    report = check(path, target="openai")
    assert [(p.code, p.line) for p in report.problems] == [(code, 12)]
    assert str(report.problems[0]).startswith(f"{path}:12: error [{code}] ")
    assert report.problems[0].fix in str(report)
    assert (report.ok, report.lines, report.good) == (False, 11, 10)
    assert path.read_bytes() == before


@pytest.mark.parametrize("count", [1_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_exactly_the_malformed_lines_are_reported(tmp_path: Path, count: int) -> None:
    codes = [code for code in BAD_LINES if code != "answer_cut"]
    lines, expected = [], []
    for number, good in enumerate(good_lines(count), start=1):
        bad = number % 10 == 3
        code = codes[number // 10 % len(codes)]
        lines.append(BAD_LINES[code] if bad else good)
        expected += [(number, code)] if bad else []
    path = tmp_path / "train.jsonl"
    path.write_bytes(b"\n".join(lines))
    report = check(path, target="openai")
    assert [(p.line, p.code) for p in report.problems if not p.is_warning] == expected
    assert (len(expected), report.good) == (count // 10, count - count // 10)
    assert path.read_bytes() == b"\n".join(lines)
    fixed = report.fix(tmp_path / "fixed.jsonl")
    assert fixed.read_bytes().splitlines() == [
        good for n, good in enumerate(good_lines(count), 1) if n % 10 != 3
    ]
    assert check(fixed, target="openai").ok


def test_a_file_is_never_fixed_onto_itself(tmp_path: Path) -> None:
    path = FinetuneDataset([SONG]).save(tmp_path / "data.jsonl")
    report = check(path, target="openai")
    with pytest.raises(ConfigurationError, match="is the file that was checked"):
        report.fix(path)


def test_warnings_do_not_cost_the_line(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    rows = [{"messages": [USER, ANSWER], "source": "x"}] * 2
    path.write_text("\n".join(map(json.dumps, rows)))
    report = check(path, target="gradient")
    assert [(p.code, p.line, p.is_warning) for p in report.problems] == [("duplicate", 2, True)]
    assert (report.ok, report.good) == (True, 2)
    strict = check(path, target="openai")
    assert [p.code for p in strict.problems] == [
        "unknown_keys",
        "unknown_keys",
        "duplicate",
        "too_few_examples",
    ]


def test_missing_empty_and_small_files_are_problems_not_exceptions(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"\n\n")
    assert [p.code for p in check(tmp_path / "missing", target="openai").problems] == ["cannot_read"]
    assert [p.code for p in check(tmp_path / "empty", target="openai").problems] == ["no_examples"]
    assert [p.code for p in check(tmp_path, target="openai").problems] == ["cannot_read"]
    assert [p.code for p in check([], target="openai").problems] == ["no_examples"]
    few = check([SONG], target="openai")
    assert [(p.code, p.message) for p in few.problems] == [("too_few_examples", "1, expected 10")]


def test_a_file_over_the_providers_limit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "large.jsonl"
    path.write_bytes(b"\n".join(good_lines(10)))
    openai = target_named("openai", None, None, PromptForm("json"))
    assert openai.max_bytes == 512 * 1024**2
    small = replace(openai, max_bytes=path.stat().st_size - 1)
    assert [p.code for p in check(path, target=small).problems] == ["file_too_large"]


def test_data_sets_and_shards_are_checked_like_files(tmp_path: Path) -> None:
    data = FinetuneDataset.from_pairs([(f"q{n}", Song(title=str(n))) for n in range(12)])
    assert check(data, target="openai").ok
    FinetuneDataset(data[:6]).save(tmp_path / "c.jsonl")
    FinetuneDataset(data[6:]).save(tmp_path / "c.jsonl.shard-1-2")
    report = check(tmp_path / "c.jsonl", target="openai")
    assert (report.ok, report.lines) == (True, 12)
    assert report.tokens == check(data, target="openai").tokens
    assert len(FinetuneDataset.load(report.fix(tmp_path / "all.jsonl"))) == 12


def test_the_same_example_in_two_shards_is_a_duplicate_whatever_its_lines(tmp_path: Path) -> None:
    data = FinetuneDataset.from_pairs([("q", Song(title="One"))])
    data.save(tmp_path / "c.jsonl")
    data.save(tmp_path / "c.jsonl.shard-1-2")
    messages = {p.code: p.message for p in check(tmp_path / "c.jsonl", target="openai").problems}
    assert messages["duplicate"] == f"the same as line 1 of {tmp_path / 'c.jsonl'}"


def test_openai_counts_what_is_trained_and_what_it_costs() -> None:
    data = [
        Example(
            messages=(
                Message(role="user", content="one"),
                Message(role="assistant", content="alpha beta", weight=0),
                Message(role="user", content="two"),
            ),
            answer=Message(role="assistant", content="gamma"),
        )
    ]
    report = check(data, target="openai", epochs=3, price_per_million=10.0)
    assert report.span is not None
    assert report.span.trained_text == "gamma"
    assert report.trained_tokens == sum(report.span.trained)
    assert report.tokens == len(report.span.ids) + 4 * 4 + 3
    assert report.cost == pytest.approx(report.tokens * 3 * 10 / 1e6)
    assert "at the given price" in str(report)


def test_gradient_lines_are_read_with_their_trainable_parts(tmp_path: Path) -> None:
    path = tmp_path / "g.jsonl"
    parts = [{"value": "prompt ", "trainable": False}, {"value": "answer", "trainable": True}]
    nothing = [{"value": "prompt", "trainable": False}]
    rows = [{"inputs": "all of it"}, {"inputs": parts}, {"inputs": nothing}, {"inputs": [{"value": 1}]}]
    path.write_text("\n".join(map(json.dumps, rows)))
    report = check(path, target="gradient")
    assert [(p.line, p.code) for p in report.problems] == [(3, "bad_message"), (4, "bad_message")]
    assert report.estimated
    assert "estimated" in str(report)


def test_unknown_targets_are_settings_errors() -> None:
    with pytest.raises(ConfigurationError, match="'openai', 'gradient', 'local' or 'trl'"):
        check([SONG], target="azure")
    with pytest.raises(ConfigurationError, match="holds dict, expected Examples"):
        check([{"messages": []}], target="openai")  # type: ignore[list-item]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
near_misses = st.fixed_dictionaries(
    {},
    optional={
        "messages": st.lists(
            st.fixed_dictionaries(
                {"role": st.sampled_from(["user", "assistant", "tool", "x"])},
                optional={
                    "content": json_values,
                    "tool_calls": st.lists(st.just(call()) | json_values, max_size=2) | json_values,
                    "function_call": json_values,
                    "weight": json_values,
                    "tool_call_id": json_values,
                },
            )
            | json_values,
            max_size=3,
        )
        | json_values,
        "answer": st.just(ANSWER) | json_values,
        "answer_schema": json_values,
        "transport": st.sampled_from(["text", "tools", "json_schema"]) | json_values,
        "tools": st.lists(st.just(TOOL) | json_values, max_size=2) | json_values,
        "functions": json_values,
        "inputs": json_values,
        "input": json_values,
        "preferred_output": json_values,
        "prompt": json_values,
        "completion": json_values,
    },
)
any_line = (
    st.binary(max_size=40)
    | json_values.map(lambda v: json.dumps(v).encode())
    | near_misses.map(lambda v: json.dumps(v).encode())
    | st.sampled_from([*BAD_LINES.values()][:5])
)


def never_raises(folder: Path, lines: list[bytes], target: str | TrainingTarget) -> None:
    path = folder / "any.jsonl"
    path.write_bytes(b"\n".join(lines))
    report = check(path, target=target)
    assert "internal" not in {p.code for p in report.problems}
    assert not [p for p in report.problems if PYTHON_ERROR.match(p.message)]
    assert str(report)
    again = check(report.fix(folder / "fixed.jsonl"), target=target)
    assert not [p for p in again.problems if p.line and not p.is_warning]


@given(st.lists(any_line, max_size=4), st.sampled_from(["openai", "gradient"]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
def test_no_bytes_make_the_check_raise(tmp_path: Path, lines: list[bytes], target: str) -> None:
    never_raises(tmp_path, lines, target)


@pytest.mark.slow
@given(st.lists(any_line, max_size=4), st.sampled_from(["openai", "gradient"]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=10_000, deadline=None)
def test_no_bytes_of_ten_thousand_cases_make_the_check_raise(
    tmp_path: Path, lines: list[bytes], target: str
) -> None:
    never_raises(tmp_path, lines, target)


# OpenAI's own rules


def openai_row(*turns: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"messages": [USER, *turns]} | more


def part(kind: str, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": kind, **more}]}


RESULT = {"role": "tool", "content": "r", "tool_call_id": "1"}
LEGACY_CALL = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}}
REFUSED_BY_OPENAI: dict[str, tuple[str, dict[str, Any]]] = {
    "a call without result": ("unanswered_call", openai_row(calling(call()), ANSWER, tools=[TOOL])),
    "a call whose result comes later": (
        "unanswered_call",
        openai_row(calling(call()), USER, RESULT, ANSWER, tools=[TOOL]),
    ),
    "two calls and one result": (
        "unanswered_call",
        openai_row(calling(call(), call(number="2")), RESULT, ANSWER, tools=[TOOL]),
    ),
    "a legacy call without result": (
        "unanswered_call",
        openai_row(LEGACY_CALL, ANSWER, functions=[TOOL["function"]]),
    ),
    "a tool with a space in its name": (
        "bad_name",
        openai_row(ANSWER, tools=[{"type": "function", "function": {"name": "get price"}}]),
    ),
    "a tool with 65 characters": (
        "bad_name",
        openai_row(ANSWER, tools=[{"type": "function", "function": {"name": "f" * 65}}]),
    ),
    "a tool with a line ending in its name": (
        "bad_name",
        openai_row(ANSWER, tools=[{"type": "function", "function": {"name": "f\n"}}]),
    ),
    "a legacy function with a dot": ("bad_name", openai_row(ANSWER, functions=[{"name": "a.b"}])),
    "a tool without function": ("bad_tool", openai_row(ANSWER, tools=[{"type": "function"}])),
    "a tool of another type": ("bad_tool", openai_row(ANSWER, tools=[TOOL | {"type": "retrieval"}])),
    "parameters that are a list": (
        "bad_tool",
        openai_row(ANSWER, tools=[{"type": "function", "function": {"name": "f", "parameters": []}}]),
    ),
    "parameters of no object": (
        "bad_tool",
        openai_row(ANSWER, tools=[{"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}]),
    ),
    "129 tools": ("bad_tool", openai_row(ANSWER, tools=[TOOL] * 129)),
    "a call without id": (
        "bad_tool",
        openai_row(calling({k: v for k, v in call().items() if k != "id"}), tools=[TOOL]),
    ),
    "two calls of one id": ("bad_tool", openai_row(calling(call(), call()), tools=[TOOL])),
    "a user's call": ("bad_tool", {"messages": [USER | {"tool_calls": [call()]}, RESULT, ANSWER], "tools": [TOOL]}),
    "a cache point": ("bad_part", openai_row(part("cache", cache_control={"type": "ephemeral"}), ANSWER)),
    "audio": ("bad_part", openai_row(part("input_audio", input_audio={"data": "", "format": "wav"}), ANSWER)),
    "a document": ("bad_part", openai_row(part("document", document={}), ANSWER)),
    "a file": ("bad_part", openai_row(part("file", file={"file_id": "f"}), ANSWER)),
    "a part without type": ("bad_part", openai_row({"role": "user", "content": [{"text": "q"}]}, ANSWER)),
    "a text part without text": ("bad_part", openai_row(part("text"), ANSWER)),
    "an image without URL": ("bad_part", openai_row(part("image_url", image_url={}), ANSWER)),
    "an image on this machine": ("bad_part", openai_row(part("image_url", image_url={"url": "a.png"}), ANSWER)),
    "an image by the assistant": (
        "bad_part",
        openai_row(
            {"role": "assistant", "content": [{"type": "image_url", "image_url": {"url": "https://x/y.png"}}]},
            USER,
            ANSWER,
        ),
    ),
    "an image for the system": (
        "bad_part",
        {"messages": [part("image_url", image_url={"url": "https://x/y.png"}) | {"role": "system"}, USER, ANSWER]},
    ),
    "a weight of the user": ("bad_weight", {"messages": [USER | {"weight": 1}, ANSWER]}),
    "a weight of 0.5": ("bad_message", openai_row(ANSWER | {"weight": 0.5})),
    "a user's last word": ("bad_message", openai_row(ANSWER, USER)),
    "arguments as an object": ("tool_arguments", openai_row(calling(call(arguments={})), tools=[TOOL])),
}  # fmt: skip
TAKEN_BY_OPENAI: dict[str, dict[str, Any]] = {
    "a call at the end": openai_row(calling(call()), tools=[TOOL]),
    "calls with their results": openai_row(
        calling(call(), call(number="2")), RESULT | {"tool_call_id": "2"}, RESULT, ANSWER, tools=[TOOL]
    ),
    "a legacy call with its result": openai_row(
        LEGACY_CALL, {"role": "function", "name": "f", "content": "r"}, ANSWER, functions=[TOOL["function"]]
    ),
    "a tool without parameters": openai_row(ANSWER, tools=[{"type": "function", "function": {"name": "f"}}]),
    "128 tools, some of 64 characters": openai_row(
        ANSWER, tools=[{"type": "function", "function": {"name": f"{n:_<64}"}} for n in range(128)]
    ),
    "an image": openai_row(part("image_url", image_url={"url": "data:image/png;base64,AAAA"}), ANSWER),
    "text in parts": openai_row(part("text", text="q"), ANSWER),
    "a refusal": openai_row({"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}, USER, ANSWER),
    "weights": openai_row(ANSWER | {"weight": 0}, USER, ANSWER | {"weight": 1}),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED_BY_OPENAI)
def test_what_openai_refuses_is_an_error_of_its_line(name: str, tmp_path: Path) -> None:
    code, row = REFUSED_BY_OPENAI[name]
    path = tmp_path / "train.jsonl"
    path.write_bytes(b"\n".join([*good_lines(10), json.dumps(row).encode()]))
    assert [(p.code, p.line) for p in check(path, target="openai").problems] == [(code, 11)]


@pytest.mark.parametrize("name", TAKEN_BY_OPENAI)
def test_what_openai_takes_is_no_problem(name: str, tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(b"\n".join([*good_lines(10), json.dumps(TAKEN_BY_OPENAI[name]).encode()]))
    assert check(path, target="openai").problems == ()


# Files that cannot be read or written


def test_fixing_what_cannot_be_read_or_written_is_a_clear_error(tmp_path: Path) -> None:
    missing = check(tmp_path / "missing.jsonl", target="openai")
    with pytest.raises(DatasetError, match=r"missing\.jsonl: error \[cannot_read\] No such file"):
        missing.fix(tmp_path / "fixed.jsonl")
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ConfigurationError, match=r"file/fixed\.jsonl: cannot be written \(.*; free disk space, or"
    ):
        check([SONG], target="openai").fix(tmp_path / "file" / "fixed.jsonl")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_many_problems_are_listed_by_kind_with_each_fix_once(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(b"\n".join([*good_lines(10), *[b"{"] * 190, b"[]", b"{", *good_lines(1)]))
    lines = str(check(path, target="openai")).splitlines()
    report = check(path, target="openai")
    assert len(report.problems) == 193, "the report itself keeps every problem"
    assert [line.count(FIXES["not_json"]) for line in lines].count(1) == 1
    assert lines[:2] == [str(report.problems[0]), report.problems[1].finding]
    assert lines[5:7] == ["... and 186 more [not_json]: lines 16-200, 202", str(report.problems[190])]
    assert lines[7].startswith(f"{path}:203: warning [duplicate]"), "warnings come after errors"
    assert len(lines) < 13


@pytest.mark.parametrize("answer", ['{"a":NaN}', '{"a":1e400}', '{"a":"\\ud800"}', '{"a":1} and text'])
@pytest.mark.parametrize("target", ["openai", "gradient", "local"])
def test_an_answer_to_a_schema_is_one_json_value_for_every_target(answer: str, target: str) -> None:
    row = SONG.model_copy(
        update={"answer": Message(role="assistant", content=answer), "answer_schema": {"type": "object"}}
    )
    problem = check([row], target=target).problems[0]
    assert problem.code == "answer_not_in_schema"
    assert problem.message.startswith("the answer is not one JSON value: ")


def test_prompts_are_not_kept_for_the_walk_of_answers(tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "base")
    rows = ((f"{n} " + "x" * 1500, {"title": "One"}) for n in range(150))
    schema = {"type": "object", "properties": {"title": {"type": "string"}}}
    path = FinetuneDataset.from_pairs(rows, schema=schema).save(tmp_path / "data.jsonl")
    check(path, base_model=base)
    tracemalloc.start()
    try:
        report = check(path, base_model=base)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert report.good == 150
    assert peak < 16 * report.tokens, "the ids and the marks of all rows would take that"


def test_what_no_source_or_setting_can_be_is_a_settings_error() -> None:
    for source in ("a\0b", None):
        with pytest.raises(ConfigurationError, match="source: "):
            check(source, target="openai")  # type: ignore[arg-type]
    for length, epochs in ((0, None), (None, -1)):
        with pytest.raises(ConfigurationError, match="expected at least 1, or None"):
            check([SONG], target="openai", max_length=length, epochs=epochs)


def test_a_file_that_is_removed_during_the_check_is_read_to_its_end(tmp_path: Path) -> None:
    path = FinetuneDataset([SONG] * 3).save(tmp_path / "data.jsonl")
    built_in = target_named("gradient", None, None, PromptForm("json"))

    def tokenise(example: Example) -> TokenisedRow:
        path.unlink(missing_ok=True)
        return built_in.tokenise(example)

    report = check(path, target=replace(built_in, tokenise=tokenise))
    assert (report.good, report.ok) == (3, True)
    assert report.span is None, "the span is read again"
