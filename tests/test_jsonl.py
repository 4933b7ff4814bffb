"""JSON Lines: reading, strict parsing, and repair of a last line that was torn at any byte."""

from __future__ import annotations

import codecs
import json
import logging
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import BaseModel, field_validator

from llama_index_finetune_structured import FinetuneDataset, Scorecard, check, load_schema
from llama_index_finetune_structured.cli.teacher import read_questions
from llama_index_finetune_structured.dataset.pairs import read_pairs
from llama_index_finetune_structured.engines.hosted.journal import RunJournal
from llama_index_finetune_structured.errors import DatasetError, FinetuneStructuredError
from llama_index_finetune_structured.files import read_json
from llama_index_finetune_structured.jsonl import (
    MAX_LINE_BYTES,
    READ_ERRORS,
    is_json,
    one_line_reason,
    parse_line,
    read_lines,
    repair_tail,
    require_utf8,
    save_lines,
)
from llama_index_finetune_structured.jsonl_store import JsonlStore, read_shards

ROOT = Path(__file__).parents[1]

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
finite = st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | finite | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(texts, values, min_size=1, max_size=3)
endings = st.sampled_from([b"\n", b"\r\n", b"\n\n", b"\n \t\n"])


def dumped(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file for all examples of a property; each example writes it anew."""
    return tmp_path_factory.mktemp("lines") / "rows.jsonl"


@given(
    rows=st.lists(st.tuples(objects, endings), max_size=5),
    with_mark=st.booleans(),
    before=st.sampled_from([b"", b"\n", b" \n"]),
)
def test_a_file_is_read_back_with_line_numbers_past_blank_lines_and_byte_order_mark(
    rows: list[tuple[dict[str, Any], bytes]], with_mark: bool, before: bytes, path: Path
) -> None:
    data, expected = before, []
    for row, ending in rows:
        expected.append((data.count(b"\n") + 1, row))
        data += dumped(row) + ending
    path.write_bytes((codecs.BOM_UTF8 if with_mark else b"") + data)
    assert [(line.number, parse_line(line.raw)) for line in read_lines(path)] == expected
    assert [line.where for line in read_lines(path)] == [f"{path}:{number}" for number, _ in expected]


@given(kept=st.lists(objects, max_size=3), last=objects, data=st.data())
def test_a_last_line_torn_at_any_byte_is_skipped_and_the_others_are_read(
    kept: list[dict[str, Any]], last: dict[str, Any], data: st.DataObject, path: Path
) -> None:
    whole = b"".join(dumped(row) + b"\n" for row in kept)
    tail = dumped(last)
    cut = data.draw(st.integers(0, len(tail)))
    path.write_bytes(whole + tail[:cut])
    expected = [*kept, last] if cut == len(tail) else kept
    assert [parse_line(line.raw) for line in read_lines(path)] == expected


def test_a_torn_line_is_logged_with_its_place(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.write_bytes(b'{"a": 1}\n{"a": ')
    with caplog.at_level(logging.WARNING):
        assert [line.number for line in read_lines(path)] == [1]
    assert f"{path}:2: the last line is incomplete and is skipped" in caplog.text


def test_a_torn_line_is_read_as_it_is_where_the_caller_wants_its_error(path: Path) -> None:
    path.write_bytes(b"Dear diary")
    assert list(read_lines(path)) == []
    assert [line.raw for line in read_lines(path, torn_from=2)] == [b"Dear diary"]
    path.write_bytes(b'{"a": 1}\nDear diary')
    assert [line.raw for line in read_lines(path, torn_from=2)] == [b'{"a": 1}']
    assert [line.raw for line in read_lines(path, torn_from=None)] == [b'{"a": 1}', b"Dear diary"]


def test_a_broken_line_inside_the_file_is_no_torn_line(path: Path) -> None:
    path.write_bytes(b'{"a": \n{"a": 1}\n')
    assert [line.raw for line in read_lines(path)] == [b'{"a": ', b'{"a": 1}']


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        list(read_lines(tmp_path / "none.jsonl"))


@given(shards=st.lists(st.lists(objects, max_size=3), min_size=1, max_size=4), torn=st.booleans())
def test_shards_are_read_after_the_main_file_and_each_may_be_torn(
    shards: list[list[dict[str, Any]]], torn: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    main = tmp_path_factory.mktemp("shards") / "rows.jsonl"
    for number, rows in enumerate(shards):
        file = main if number == 0 else Path(f"{main}.shard-{number:020d}-7")
        file.write_bytes(b"".join(dumped(row) + b"\n" for row in rows) + (b'{"torn' if torn else b""))
    assert [parse_line(line.raw) for line in read_shards(main)] == [row for rows in shards for row in rows]


@given(values)
def test_a_value_is_parsed_as_json_parses_it(value: Any) -> None:
    assert parse_line(dumped(value)) == value
    assert parse_line(json.dumps(value).encode()) == value
    assert is_json(dumped(value))


@given(st.integers() | finite)
@example(2**64)
@example(-0.0)
@example(5e-324)
@example(1.7976931348623157e308)
def test_numbers_keep_their_type_and_value(number: float) -> None:
    parsed = parse_line(json.dumps(number).encode())
    assert (type(parsed), repr(parsed)) == (type(number), repr(number))


LONE = ", which UTF-8 cannot encode: decode the text that it came from anew"


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"NaN", "NaN is not a JSON value"),
        (b'{"a": [-Infinity]}', "-Infinity is not a JSON value"),
        (b'{"a": 1e999}', "1e999 is not a JSON value"),
        (
            rb'{"a": "\ud83d"}',
            r"a lone surrogate ('\ud83d'), which UTF-8 cannot encode: decode the text that it came from anew",
        ),
        (
            rb'{"\uDC00": 1}',
            r"a lone surrogate ('\udc00'), which UTF-8 cannot encode: decode the text that it came from anew",
        ),
        (b'{"a": "\xff"}', "not UTF-8 text (byte 8 of the line)"),
        (b'{"a": 1', "not valid JSON (Expecting ',' delimiter at column 8)"),
        (b"[" * 100_000, "JSON is nested too deeply"),
    ],
)
def test_a_line_that_could_not_be_written_again_is_refused_in_one_line(raw: bytes, reason: str) -> None:
    with pytest.raises(READ_ERRORS) as caught:
        parse_line(raw)
    assert one_line_reason(caught.value) == reason


def test_a_pair_of_escaped_surrogates_is_one_character() -> None:
    assert parse_line(rb'"\ud83d\ude00"') == "\U0001f600"


@given(st.text())
def test_text_is_utf8_exactly_where_it_can_be_encoded(text: str) -> None:
    lone = any("\ud800" <= char <= "\udfff" for char in text)
    if lone:
        with pytest.raises(ValueError, match="a lone surrogate"):
            require_utf8(text)
    else:
        require_utf8(text)


@given(st.binary(max_size=40))
def test_any_bytes_are_parsed_or_refused_with_a_reason_of_one_line(raw: bytes) -> None:
    reason = None
    try:
        value = parse_line(raw)
    except READ_ERRORS as error:
        reason = one_line_reason(error)
    if reason is None:
        assert is_json(raw)
        assert not isinstance(value, float) or math.isfinite(value)
    else:
        assert len(reason.splitlines()) == 1


class Song(BaseModel):
    title: str

    @field_validator("title")
    @classmethod
    def _named(cls, title: str) -> str:
        if not title:
            raise ValueError("a song has a title")
        return title


@pytest.mark.parametrize(
    ("row", "reason"), [({}, "title: Field required"), ({"title": ""}, "title: a song has a title")]
)
def test_a_validation_error_names_its_field(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match="title") as caught:
        Song.model_validate(row)
    assert one_line_reason(caught.value) == reason


@given(rows=st.lists(objects, max_size=4))
def test_written_lines_are_read_back(rows: list[dict[str, Any]], path: Path) -> None:
    save_lines(path, [json.dumps(row, ensure_ascii=False) for row in rows])
    assert [parse_line(line.raw) for line in read_lines(path)] == rows


def repaired(path: Path, content: bytes) -> bytes:
    path.write_bytes(content)
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND)
    try:
        repair_tail(descriptor)
    finally:
        os.close(descriptor)
    return path.read_bytes()


@given(rows=st.lists(objects, max_size=4), data=st.data())
def test_repair_keeps_the_complete_lines_of_a_file_cut_at_any_byte_and_nothing_else(
    rows: list[dict[str, Any]], data: st.DataObject, path: Path
) -> None:
    lines = [dumped(row) + b"\n" for row in rows]
    whole = b"".join(lines)
    cut = whole[: data.draw(st.integers(0, len(whole)))]
    # A line is complete from its last bracket on: its ending may be cut off and is added again.
    complete, ends = 0, 0
    for line in lines:
        ends += len(line)
        complete += ends - 1 <= len(cut)
    assert repaired(path, cut) == b"".join(lines[:complete])


@given(rows=st.lists(objects, max_size=4), data=st.data())
def test_repair_is_done_after_one_pass(rows: list[dict[str, Any]], data: st.DataObject, path: Path) -> None:
    whole = b"".join(dumped(row) + b"\n" for row in rows)
    once = repaired(path, whole[: data.draw(st.integers(0, len(whole)))])
    assert repaired(path, once) == once


@pytest.mark.parametrize("length", [(1 << 16) - 1, 1 << 16, (1 << 16) + 1, 1 << 18])
@pytest.mark.parametrize("before", [b"", b'{"a": 1}\n'])
def test_a_torn_line_longer_than_a_block_is_removed_whole(length: int, before: bytes, path: Path) -> None:
    assert repaired(path, before + b'"' + b"x" * (length - 1)) == before
    long = b'"' + b"x" * (length - 2) + b'"'
    assert repaired(path, before + long) == before + long + b"\n"


@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b""])
def test_a_line_may_have_sixteen_megabytes_and_not_one_byte_more(ending: bytes, path: Path) -> None:
    whole = b'"' + b"x" * (MAX_LINE_BYTES - 2) + b'"'
    path.write_bytes(b'{"a": 1}\n' + whole + ending + (b'{"b": 1}\n' if ending else b""))
    assert [len(line.raw) for line in read_lines(path)] == [8, MAX_LINE_BYTES, 8][: 3 if ending else 2]
    path.write_bytes(b'{"a": 1}\n' + whole + b" " + ending)
    with pytest.raises(OSError, match=r"line 2 has more than 16,777,216 bytes; shorten it, or leave it out"):
        list(read_lines(path))


def test_a_line_that_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    for line in ("x" * (MAX_LINE_BYTES + 1), "\N{GREEK SMALL LETTER ALPHA}" * (MAX_LINE_BYTES // 2 + 1)):
        with pytest.raises(DatasetError, match="row 2 has more than 16,777,216 bytes"):
            save_lines(tmp_path / "rows.jsonl", ["{}", line])
        with pytest.raises(OSError, match="the record has more than 16,777,216 bytes"):
            JsonlStore(tmp_path / "store.jsonl").append(line.encode())
    assert not (tmp_path / "rows.jsonl").exists()


_CHECK = """
import resource, sys
from llama_index_finetune_structured import check
limit = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
report = check(sys.argv[1], target="openai")
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - limit
print(grown // 1024, *report.problems)
"""


def test_the_check_of_a_line_of_200_megabytes_names_it_and_takes_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with path.open("wb") as file:
        file.write(b'{"messages": [{"role": "user", "content": "')
        for _ in range(200):
            file.write(b"word " * 200_000)
        file.write(b'"}]}\n')
    run = subprocess.run(
        [sys.executable, "-c", _CHECK, str(path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    megabytes, problem = run.stdout.split(maxsplit=1)
    assert "line 1 has more than 16,777,216 bytes; shorten it, or leave it out" in problem
    assert int(megabytes) < 200


@pytest.mark.parametrize("kind", ["pipe", "folder", "device"])
def test_what_is_no_file_is_refused_by_every_reader_without_waiting(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.yaml"
    made: dict[str, Callable[[Path], Any]] = {
        "pipe": os.mkfifo,
        "folder": Path.mkdir,
        "device": lambda path: path.symlink_to("/dev/zero"),
    }
    made[kind](path)
    readers: dict[str, Callable[[Path], Any]] = {
        "lines": lambda path: list(read_lines(path)),
        "json": read_json,
        "dataset": FinetuneDataset.load,
        "scorecard": Scorecard.from_json,
        "schema": load_schema,
        "questions": read_questions,
        "labels": lambda path: list(read_pairs(path)),
        "store": lambda path: JsonlStore(path).open(),
        "preferences": lambda path: FinetuneDataset([]).save_preferences(tmp_path / "out", path),
        "journal": lambda path: RunJournal(_linked(tmp_path, path)).require(),
    }
    for name, reader in readers.items():
        with pytest.raises((OSError, FinetuneStructuredError), match="expected a regular file") as raised:
            reader(path)
        assert tmp_path.name in str(raised.value), name
    (problem,) = check(path).problems
    assert "expected a regular file" in problem.message


def _linked(folder: Path, path: Path) -> Path:
    (folder / "run").mkdir()
    (folder / "run" / "run.json").symlink_to(path)
    return folder / "run"
