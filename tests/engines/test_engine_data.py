"""Engines accept their training data as ``data`` or, as in llama-index-finetuning, as ``data_path``."""

from __future__ import annotations

import codecs
import contextlib
import gzip
import json
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llama_index_finetune_structured import FinetuneDataset, LoraFinetuneEngine, LoraSettings, check
from llama_index_finetune_structured.dataset.checks.problems import listing
from llama_index_finetune_structured.engines.base import one_of_data, path_or_dataset
from llama_index_finetune_structured.engines.gradient import _read_samples
from llama_index_finetune_structured.engines.hosted.plan import JobPlan
from llama_index_finetune_structured.errors import ConfigurationError, DatasetError
from llama_index_finetune_structured.local.model.prompts import token_rows


def test_either_name_is_accepted() -> None:
    assert one_of_data("a.jsonl", None) == one_of_data(None, "a.jsonl") == "a.jsonl"


def test_both_names_or_none_are_an_error_that_names_them() -> None:
    with pytest.raises(ConfigurationError, match="both data and data_path are set: pass one"):
        one_of_data("a.jsonl", "b.jsonl")
    with pytest.raises(ConfigurationError, match="no training data: pass data="):
        one_of_data(None, None)


def test_a_file_of_examples_is_read_as_a_dataset_and_any_other_file_stays_a_path(tmp_path: Path) -> None:
    examples = FinetuneDataset.from_pairs([("Q", '{"a": 1}')], schema={"type": "object"})
    canonical = examples.save(tmp_path / "examples.jsonl")
    other = tmp_path / "other.jsonl"
    other.write_text('{"messages": []}\n')
    assert isinstance(path_or_dataset(canonical), FinetuneDataset)
    assert path_or_dataset(other) == other


def test_a_missing_file_and_a_wrong_type_are_clear_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no such training file"):
        path_or_dataset(tmp_path / "none.jsonl")
    with pytest.raises(ConfigurationError, match="data is a int; expected a path or a FinetuneDataset"):
        path_or_dataset(3)  # type: ignore[arg-type]


# The local engine and the check: one verdict on every row and every file


SCHEMA = {
    "title": "Song",
    "type": "object",
    "properties": {"title": {"type": "string"}, "tracks": {"type": "array", "items": {"type": "integer"}}},
    "required": ["title"],
}
USER = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
TRL_CALL = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}


def _example(answer: str, **more: Any) -> dict[str, Any]:
    return {
        "messages": [USER],
        "answer": {"role": "assistant", "content": answer},
        "answer_schema": SCHEMA,
    } | more


def _chat(*turns: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"messages": list(turns)} | more


GOOD_ROWS: dict[str, dict[str, Any]] = {
    "an Example": _example('{"title":"One"}'),
    "an Example with the id of another": _example('{"title":"Two"}', id="0" * 64),
    "an Example of another schema": _example('{"n":1}', answer_schema={"type": "object", "properties": {"n": {}}}),
    "an Example of plain text": {"messages": [USER], "answer": ANSWER},
    "a chat": _chat(USER, ANSWER),
    "a chat with keys that nobody needs": _chat(USER, ANSWER, source="x"),
    "a chat with an earlier turn of weight 0": _chat(USER, ANSWER | {"weight": 0}, USER, ANSWER),
    "legacy functions": _chat(
        USER,
        {"role": "assistant", "content": None, "function_call": {"name": "get price!", "arguments": "{}"}},
        functions=[{"name": "get price!", "parameters": {"type": "object"}}],
    ),
    "tools": _chat(USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}, tools=[TOOL]),
    "TRL's tools": _chat(
        USER,
        {"role": "assistant", "content": "", "tool_calls": [TRL_CALL]},
        tools=json.dumps(
            [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {}}}}}]
        ),
    ),
    "a prompt and a completion": {"prompt": "q", "completion": "a"},
    "a prompt and a completion of messages": {"prompt": [USER], "completion": [ANSWER]},
    "text in parts": _chat({"role": "user", "content": [{"type": "text", "text": "q"}]}, ANSWER),
    "as long as allowed": _chat(USER | {"content": "b" * 8000}, ANSWER),
}  # fmt: skip
BAD_ROWS: dict[str, tuple[str, dict[str, Any] | bytes]] = {
    "no JSON": ("not_json", b'{"messages": ['),
    "NaN": ("not_json", b'{"messages": NaN}'),
    "a lone surrogate": ("not_json", rb'{"messages": "\ud800"}'),
    "no UTF-8": ("not_utf8", b'{"messages": "\xff"}'),
    "deep JSON": ("too_deep", b"[" * 50_000),
    "a list": ("not_an_object", b"[1, 2]"),
    "a number": ("not_an_object", b"3"),
    "unknown keys": ("unknown_format", {"query": "q", "response": "r"}),
    "no keys": ("unknown_format", b"{}"),
    "Gradient's row": ("wrong_format", {"inputs": "prompt and answer"}),
    "OpenAI's preference": (
        "wrong_format",
        {"input": _chat(USER), "preferred_output": [ANSWER], "non_preferred_output": [ANSWER]},
    ),
    "an unknown role": ("bad_message", _chat({"role": "wizard"}, ANSWER)),
    "a user's last word": ("bad_message", _chat(ANSWER, USER)),
    "one message": ("bad_message", _chat(USER)),
    "messages that are none": ("bad_message", {"messages": "hello"}),
    "an unknown key in a message": ("bad_message", _chat(USER, ANSWER | {"colour": "red"})),
    "an unknown key in an Example": ("bad_message", _example('{"title":"One"}', colour="red")),
    "a prompt without completion": ("bad_message", {"prompt": "q", "chosen": "a", "rejected": "b"}),
    "no content": ("bad_message", _chat({"role": "user"}, ANSWER)),
    "weight 0": ("zero_trained", _chat(USER, ANSWER | {"weight": 0})),
    "weight 2": ("bad_message", _chat(USER, ANSWER | {"weight": 2})),
    "an empty answer": ("empty_answer", _chat(USER, ANSWER | {"content": " "})),
    "broken arguments": (
        "tool_arguments",
        _chat(
            USER,
            {"role": "assistant", "tool_calls": [CALL | {"function": {"name": "f", "arguments": "{"}}]},
            tools=[TOOL],
        ),
    ),
    "an unknown tool": ("unknown_tool", _chat(USER, {"role": "assistant", "tool_calls": [CALL]})),
    "a result without call": (
        "orphan_tool_message",
        _chat(USER, {"role": "tool", "content": "r", "tool_call_id": "9"}, ANSWER),
    ),
    "an answer against its schema": ("answer_not_in_schema", _example('{"title":1}')),
    "an answer that is no JSON": ("answer_not_in_schema", _example("One")),
    "a number longer than the grammar writes": (
        "answer_not_sayable",
        _example(f'{{"title":"One","tracks":[{10**50}]}}'),
    ),
    "an image": (
        "cannot_render",
        _chat({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x/y"}}]}, ANSWER),
    ),
    "a row longer than the context window": ("answer_cut", _chat(USER | {"content": "b" * 9000}, ANSWER)),
}  # fmt: skip


def _line(row: dict[str, Any] | bytes) -> bytes:
    return row if isinstance(row, bytes) else json.dumps(row).encode()


def _verdicts(path: Path | FinetuneDataset, base: Path) -> tuple[list[str], list[str]]:
    """The errors of the check, and those of the engine before its first training step."""
    checked = [*listing(p for p in check(path, base_model=base).problems if not p.is_warning)]
    try:
        rows, _ = LoraFinetuneEngine(path, base_model=base)._training_rows()
    except DatasetError as error:
        return checked, str(error).splitlines()
    assert rows
    return checked, []


def _agree(path: Path, base: Path) -> bool:
    """Whether both accept the file; that they agree is asserted."""
    checked, trained = _verdicts(path, base)
    assert bool(checked) == bool(trained), (checked, trained)
    findings = tuple(problem.finding for problem in check(path, base_model=base).problems)
    said = [text for text in trained if not text.startswith("... and")]
    assert all(text.startswith(findings) for text in said), "the engine says what it has come to"
    return not checked


@pytest.mark.parametrize("name", GOOD_ROWS)
def test_a_row_that_the_check_accepts_is_a_row_that_the_engine_trains_on(
    name: str, tmp_path: Path, tiny_llama: Path
) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(_line(GOOD_ROWS[name]))
    assert _agree(path, tiny_llama)
    assert _agree_in_memory(FinetuneDataset.load(path), tiny_llama), "and so is the data set loaded from it"


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_row_that_the_check_refuses_is_refused_by_the_engine_in_the_same_words(
    name: str, tmp_path: Path, tiny_llama: Path
) -> None:
    code, row = BAD_ROWS[name]
    path = tmp_path / "train.jsonl"
    path.write_bytes(_line(GOOD_ROWS["a chat"]) + b"\n" + _line(row) + b"\n")
    checked, trained = _verdicts(path, tiny_llama)
    assert checked == trained
    assert [text.startswith(f"{path}:2: error [{code}] ") for text in trained] == [True]


def _agree_in_memory(data: FinetuneDataset, base: Path) -> bool:
    checked, trained = _verdicts(data, base)
    assert checked == trained
    return not checked


any_row = st.sampled_from([*map(_line, GOOD_ROWS.values()), *(_line(row) for _, row in BAD_ROWS.values())])
mostly_good = st.sampled_from([_line(row) for row in GOOD_ROWS.values()])


@given(
    lines=st.lists(any_row, max_size=4) | st.lists(mostly_good | any_row, min_size=1, max_size=6),
    start=st.sampled_from([b"", codecs.BOM_UTF8, b"\n", b" \r\n"]),
    ending=st.sampled_from([b"\n", b"\r\n", b"\n\n"]),
    tail=st.sampled_from([b"", b"\n", b'{"messages": [', b'{"torn', b"  "]),
    shard=st.none() | st.lists(any_row, max_size=2),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
def test_check_and_engine_agree_on_every_file(
    tmp_path: Path,
    tiny_llama: Path,
    lines: list[bytes],
    start: bytes,
    ending: bytes,
    tail: bytes,
    shard: list[bytes] | None,
) -> None:
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    path = folder / "train.jsonl"
    path.write_bytes(start + b"".join(line + ending for line in lines) + tail)
    if shard is not None:
        (folder / "train.jsonl.shard-1-2").write_bytes(ending.join(shard))
    if _agree(path, tiny_llama):
        report = check(path, base_model=tiny_llama)
        engine = LoraFinetuneEngine(path, base_model=tiny_llama)
        rows, _ = engine._training_rows()
        assert (len(rows), sum(map(len, rows))) == (report.good, report.tokens)
        assert sum(len(row.answer) for row in token_rows(rows)) == report.trained_tokens


FILES: dict[str, tuple[str, bytes]] = {
    "an empty file": ("no_examples", b""),
    "blank lines": ("no_examples", b"\n \r\n\n"),
    "a byte order mark": ("no_examples", codecs.BOM_UTF8),
    "only a torn line": ("no_examples", b'\n{"messages": ['),
    "UTF-16": ("not_utf8", json.dumps(GOOD_ROWS["a chat"]).encode("utf-16")),
    "gzip": ("not_utf8", gzip.compress(_line(GOOD_ROWS["a chat"]), mtime=0)),
    "one JSON list of rows": ("not_an_object", json.dumps([GOOD_ROWS["a chat"]]).encode()),
    "indented JSON": ("not_json", json.dumps(GOOD_ROWS["a chat"], indent=1).encode()),
}


@pytest.mark.parametrize("name", FILES)
def test_check_and_engine_refuse_the_same_files(name: str, tmp_path: Path, tiny_llama: Path) -> None:
    code, content = FILES[name]
    path = tmp_path / "train.jsonl"
    path.write_bytes(content)
    checked, trained = _verdicts(path, tiny_llama)
    assert checked == trained
    assert f"error [{code}] " in trained[0]


def test_check_and_engine_refuse_missing_files_folders_and_no_rows(tmp_path: Path, tiny_llama: Path) -> None:
    for source in (tmp_path / "missing.jsonl", tmp_path, FinetuneDataset([])):
        checked, trained = _verdicts(source, tiny_llama)
        assert checked == trained != []


def test_what_both_accept_is_really_trained(tmp_path: Path, tiny_llama: Path) -> None:
    """All forms of rows in one file, with a torn end and a shard, and a limit as the settings have it."""
    path = tmp_path / "train.jsonl"
    path.write_bytes(
        b"\r\n".join([codecs.BOM_UTF8 + b"", *map(_line, GOOD_ROWS.values()), b'{"messages": ['])
    )
    (tmp_path / "train.jsonl.shard-1-2").write_bytes(_line(GOOD_ROWS["an Example"]) + b"\n" + b'{"mess')
    report = check(path, base_model=tiny_llama)
    assert report.ok
    codes = [problem.code for problem in report.problems if problem.line]
    assert (set(codes), codes.count("torn_line")) == ({"duplicate", "torn_line"}, 2)
    settings_ = LoraSettings(rank=1, epochs=1, batch_size=20)
    engine = LoraFinetuneEngine(path, base_model=tiny_llama, output_dir=tmp_path / "run", config=settings_)
    engine.finetune()
    assert engine.get_current_job().status == "succeeded"
    assert len(engine.examples) == report.good == len(GOOD_ROWS) + 1


def test_a_limit_above_the_context_window_is_the_context_window_for_both(
    tmp_path: Path, tiny_llama: Path
) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(_line(BAD_ROWS["a row longer than the context window"][1]))
    report = check(path, base_model=tiny_llama, max_length=100_000)
    assert "the limit is 8192" in report.problems[0].message
    engine = LoraFinetuneEngine(
        path, base_model=tiny_llama, output_dir=tmp_path / "run", config=LoraSettings(max_length=100_000)
    )
    with pytest.raises(DatasetError) as raised:
        engine.finetune()
    assert str(raised.value) == str(report.problems[0])


def test_held_out_rows_are_held_to_the_same_check(tmp_path: Path, tiny_llama: Path) -> None:
    path = tmp_path / "validation.jsonl"
    path.write_bytes(_line(BAD_ROWS["weight 0"][1]))
    problem = check(path, base_model=tiny_llama).problems[0]
    engine = LoraFinetuneEngine(
        FinetuneDataset.from_pairs([("q", "a")]),
        base_model=tiny_llama,
        validation=path,
        output_dir=tmp_path / "r",
    )
    with pytest.raises(DatasetError) as raised:
        engine.finetune()
    assert str(raised.value) == f"held-out rows: {problem}"


CHATS = [_line(_chat(USER | {"content": f"q{n}"}, ANSWER)) for n in range(10)]
EXAMPLES = [
    _line(_example('{"title":"One"}') | {"messages": [USER | {"content": f"e{n}"}]}) for n in range(10)
]
PAIR = _line({"prompt": "q", "completion": "a"})
# File -> whether OpenAI can be given it.
UPLOADS: dict[str, tuple[bool, list[bytes]]] = {
    "chat lines": (True, CHATS),
    "chat lines with a torn end": (False, [*CHATS, b'{"messages": [']),
    "Examples": (True, EXAMPLES),
    "Examples with a torn end": (True, [*EXAMPLES, b'{"messages": [']),
    "Examples after a blank line": (True, [b"", *EXAMPLES]),
    "Examples after a byte order mark": (True, [codecs.BOM_UTF8 + EXAMPLES[0], *EXAMPLES[1:]]),
    "Examples after a broken line": (False, [b"{", *EXAMPLES]),
    "Examples, then chat lines": (True, [*EXAMPLES, *CHATS]),
    "Examples, then a prompt with completion": (True, [*EXAMPLES, PAIR]),
    "chat lines, then an Example": (False, [*CHATS, EXAMPLES[0]]),
    "chat lines, then a prompt with completion": (False, [*CHATS, PAIR]),
    "an answer against its schema": (False, [*EXAMPLES, _line(_example('{"title":1}'))]),
}


@pytest.mark.parametrize("name", UPLOADS)
def test_check_and_openai_engine_agree_and_only_openai_lines_are_uploaded(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_INDEX_FINETUNE_STRUCTURED_RUNS", str(tmp_path / "runs"))
    good, lines = UPLOADS[name]
    path = tmp_path / "train.jsonl"
    path.write_bytes(b"\n".join(lines))
    errors = [problem for problem in check(path, target="openai").problems if not problem.is_warning]
    assert (not errors) is good, errors
    plan = JobPlan("gpt-4.1", path, None, {}, None, validate_json=True)
    service: Any = SimpleNamespace(provider=SimpleNamespace(byte_order_mark=False))
    if not good:
        with pytest.raises(DatasetError) as raised:
            plan.files(service)
        assert str(raised.value) == "\n".join(listing(errors)), (
            "in the words, and by the lines, of the named file"
        )
        return
    with plan.files(service)[0].open() as upload:
        rows = [json.loads(line) for line in upload]
    assert len(rows) >= 10
    assert all("answer" not in row and row["messages"][-1]["role"] == "assistant" for row in rows)


GRADIENT_ROWS: dict[str, Any] = {
    "text": {"inputs": "a"},
    "empty text": {"inputs": ""},
    "an empty part": {"inputs": [{"value": "", "trainable": False}, {"value": "a"}]},
    "nothing trainable": {"inputs": [{"value": "a", "trainable": False}]},
    "a multiplier": {"inputs": "a", "fineTuningParameters": {"multiplier": 0.5}},
    "a multiplier of 0": {"inputs": "a", "fineTuningParameters": {"multiplier": 0}},
    "a negative multiplier": {"inputs": "a", "fineTuningParameters": {"multiplier": -1}},
    "a multiplier that is true": {"inputs": "a", "fineTuningParameters": {"multiplier": True}},
}


@pytest.mark.parametrize("name", GRADIENT_ROWS)
def test_check_and_gradient_engine_agree(name: str, tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(_line(GRADIENT_ROWS[name]))
    ok = check(path, target="gradient").ok
    assert ok is (name in ("text", "a multiplier"))
    with contextlib.nullcontext() if ok else pytest.raises(DatasetError, match=r"train\.jsonl:1: "):
        assert _read_samples(path)
