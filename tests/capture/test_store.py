"""The store on disk: private, repaired, shared between processes, readable at any time."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import stat
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_index_finetune_structured import OpenAIFineTuningHandler, capture
from llama_index_finetune_structured.errors import CaptureError, DatasetError
from llama_index_finetune_structured.example import Example, Message
from llama_index_finetune_structured.formats.reading import read_examples
from llama_index_finetune_structured.jsonl_store import JsonlStore, read_shards, shards_of


def line(text: str) -> bytes:
    return Example(messages=(Message(role="user", content=text),), answer=_ANSWER).to_json().encode()


_ANSWER = Message(role="assistant", content="yes")


def prompts(path: Path) -> list[str]:
    return [str(example.messages[0].content) for example in read_examples(path)]


def test_files_are_for_their_owner_only(path: Path) -> None:
    first, second = JsonlStore(path), JsonlStore(path)
    first.append(line("a"))
    second.append(line("b"))
    assert [stat.S_IMODE(file.stat().st_mode) for file in shards_of(path)] == [0o600, 0o600]


def test_the_file_exists_before_the_first_record(path: Path) -> None:
    JsonlStore(path).open()
    assert path.read_bytes() == b""
    assert list(read_examples(path)) == []


def test_an_earlier_capture_is_continued(path: Path) -> None:
    for text in "abc":
        store = JsonlStore(path)
        store.append(line(text))
        store.close()
    assert prompts(path) == ["a", "b", "c"]
    assert shards_of(path) == [path]


def test_a_second_writer_gets_a_shard_and_readers_merge_them(path: Path) -> None:
    first, second = JsonlStore(path), JsonlStore(path)
    for number in range(3):
        first.append(line(f"first {number}"))
        second.append(line(f"second {number}"))
    assert len(shards_of(path)) == 2
    assert prompts(path) == [f"first {number}" for number in range(3)] + [
        f"second {number}" for number in range(3)
    ]


def test_the_main_file_is_free_again_when_its_writer_has_closed(path: Path) -> None:
    first = JsonlStore(path)
    first.append(line("a"))
    first.close()
    second = JsonlStore(path)
    second.append(line("b"))
    assert shards_of(path) == [path]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forked_workers_write_their_own_shards(path: Path) -> None:
    store = JsonlStore(path)
    store.append(line("parent before"))

    def work(name: str) -> None:
        for number in range(100):
            store.append(line(f"{name} {number}"))

    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=work, args=(name,)) for name in "ABC"]
    for worker in workers:
        worker.start()
    work("parent")
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    found = prompts(path)
    assert len(found) == len(set(found)) == 401
    assert len(shards_of(path)) == 4


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_while_another_thread_writes_does_not_hang(path: Path) -> None:
    store = JsonlStore(path)
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            store.append(line("thread"))

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for number in range(20):
            child = os.fork()
            if child == 0:
                store.append(line(f"child {number}"))
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
    finally:
        stop.set()
        thread.join()
    found = prompts(path)
    assert sum(text.startswith("child") for text in found) == 20


@settings(max_examples=200, deadline=None)
@given(cut=st.integers(min_value=1, max_value=len(line("the last, ünïcode and all"))))
def test_a_tail_torn_anywhere_loses_only_its_own_record(
    cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("torn") / "songs.jsonl"
    whole = line("kept") + b"\n"
    last = line("the last, ünïcode and all")
    path.write_bytes(whole + last[:cut])
    survives = cut >= len(last)
    assert prompts(path) == ["kept", "the last, ünïcode and all"][: 1 + survives]
    store = JsonlStore(path)
    store.append(line("after"))
    store.close()
    assert prompts(path) == ["kept", *(["the last, ünïcode and all"] if survives else []), "after"]
    assert all(json.loads(text) for text in path.read_text().splitlines())


def test_a_torn_first_record_is_dropped(path: Path) -> None:
    path.write_bytes(b'{"messages": [{"ro')
    store = JsonlStore(path)
    store.append(line("after"))
    assert prompts(path) == ["after"]


@pytest.mark.parametrize(
    "content", [b"Dear diary,\nno newline", b"[1, 2]\n", b"title,year\nEchoes,1971\n", b"prose"]
)
def test_a_file_that_is_no_store_is_refused_and_unchanged(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    with pytest.raises(CaptureError, match=r"songs.jsonl:1: expected a JSON object of an earlier capture"):
        JsonlStore(path).open()
    assert path.read_bytes() == content


def test_a_folder_is_refused_as_a_path(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="cannot be opened for writing"):
        JsonlStore(tmp_path).open()


@pytest.mark.parametrize("path", ["file/songs.jsonl", "file/folder/songs.jsonl", f"{'n' * 300}/songs.jsonl"])
def test_a_path_whose_folder_cannot_be_created_is_refused(path: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    message = r"songs\.jsonl: its folder cannot be created \(.+\)"
    with pytest.raises(CaptureError, match=message):
        JsonlStore(tmp_path / path).open()
    with pytest.raises(CaptureError, match=message), capture(tmp_path / path):
        pytest.fail("the block was entered")
    with pytest.raises(CaptureError, match=message):
        OpenAIFineTuningHandler(tmp_path / path)
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


def test_a_folder_without_permission_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)  # the mode of a folder does not stop root
    with pytest.raises(CaptureError, match=r"its folder cannot be created \(Permission denied\)"):
        JsonlStore(path).open()


def test_a_broken_line_is_named_by_file_and_number(path: Path) -> None:
    path.write_bytes(line("a") + b'\n{"messages": []}\n' + line("b") + b"\n")
    with pytest.raises(DatasetError, match=r"songs\.jsonl:2: messages: expected a list"):
        list(read_examples(path))
    path.write_bytes(line("a") + b"\nnonsense\n" + line("b") + b"\n")
    with pytest.raises(DatasetError, match=r"songs\.jsonl:2: not valid JSON"):
        list(read_examples(path))


def test_a_missing_capture_is_a_clear_error(path: Path) -> None:
    with pytest.raises(DatasetError, match="cannot be read"):
        list(read_examples(path))


def test_a_reader_beside_a_writer_sees_whole_records_only(path: Path) -> None:
    store = JsonlStore(path)
    store.open()
    done = threading.Event()

    def write() -> None:
        for number in range(2_000):
            store.append(line(str(number)))
        done.set()

    thread = threading.Thread(target=write)
    thread.start()
    counts = []
    while not done.is_set():
        counts.append(len(prompts(path)))
    thread.join()
    assert counts == sorted(counts)
    assert prompts(path) == [str(number) for number in range(2_000)]


def test_shards_of_another_path_are_not_merged(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.jsonl.old", "[a].jsonl"):
        JsonlStore(tmp_path / name).append(line(name))
    assert prompts(tmp_path / "a.jsonl") == ["a.jsonl"]
    assert prompts(tmp_path / "[a].jsonl") == ["[a].jsonl"]


def test_lines_have_their_file_and_number(path: Path) -> None:
    path.write_bytes(line("a") + b"\n\n" + line("b") + b"\n")
    assert [(found.path, found.number) for found in read_shards(path)] == [(path, 1), (path, 3)]


def test_records_after_the_file_was_replaced_go_into_its_replacement(path: Path) -> None:
    store = JsonlStore(path)
    store.append(b'{"n":1}')
    (path.parent / "new").write_text('{"n":0}\n')
    os.replace(path.parent / "new", path)
    store.append(b'{"n":2}')
    assert path.read_text() == '{"n":0}\n{"n":2}\n'
