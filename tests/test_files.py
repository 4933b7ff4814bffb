"""Writes to any target: what may be replaced is, whole and with its mode; nothing else is touched."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llama_index_finetune_structured import (
    Example,
    FinetuneDataset,
    Message,
    OpenAIFineTuningHandler,
    Scorecard,
)
from llama_index_finetune_structured import check as check_file
from llama_index_finetune_structured import files as files_module
from llama_index_finetune_structured.errors import ConfigurationError
from llama_index_finetune_structured.files import (
    PUBLIC,
    creating,
    remove_leftovers,
    replacing,
    replacing_folder,
    sync_folder,
    write_json,
    write_text,
)
from llama_index_finetune_structured.jsonl import save_lines

from .capture.fakes import EchoLLM

ROOT = Path(__file__).parents[1]


class FailingOs:
    """The os module whose k-th call of one function fails."""

    def __init__(self, step: str, fails_at: int, number: int) -> None:
        self.step, self.left, self.number = step, fails_at, number
        self.failed = False

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)

        def call(*args: Any) -> Any:
            self.left -= 1
            if self.left == 0:
                self.failed = True
                raise OSError(self.number, os.strerror(self.number))
            return real(*args)

        return call if name == self.step else real


def write_file(target: Path, text: str) -> None:
    with replacing(target) as file:
        file.write(text)


def write_folder(target: Path, text: str) -> None:
    with replacing_folder(target) as unfinished:
        (unfinished / "deep").mkdir()
        (unfinished / "a").write_text(text)
        (unfinished / "deep" / "b").write_text(text)


def content(target: Path) -> set[str]:
    if target.is_file():
        return {target.read_text()}
    return {file.read_text() for file in target.rglob("*") if file.is_file()}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("fails_at", range(1, 10))
@pytest.mark.parametrize("write", [write_file, write_folder])
def test_a_failing_disk_leaves_old_or_new_and_nothing_beside_it(
    write: Any, fails_at: int, step: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "new" / "target"
    write(target, "old")
    failing = FailingOs(step, fails_at, number)
    monkeypatch.setattr(files_module, "os", failing)
    with contextlib.suppress(OSError):
        write(target, "new")
    # the flush of the folder comes after the rename: where that fails, the new content is there already
    expected = [{"new"}] if not failing.failed else [{"old"}, {"new"}] if step == "fsync" else [{"old"}]
    assert content(target) in expected
    assert [path.name for path in target.parent.iterdir()] == [target.name]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, GeneratorExit])
@pytest.mark.parametrize("manager", [replacing, replacing_folder])
def test_a_block_that_fails_keeps_the_old(manager: Any, error: type[BaseException], tmp_path: Path) -> None:
    target = tmp_path / "target"
    (write_file if manager is replacing else write_folder)(target, "old")
    with pytest.raises(error), manager(target):
        raise error
    assert content(target) == {"old"}
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def _dataset(word: str = "question") -> FinetuneDataset:
    return FinetuneDataset.from_pairs([(word, "answer")])


def _fixed(path: Path) -> None:
    check_file(_dataset(), target="openai").fix(path)


def _handler(path: Path) -> None:
    handler = OpenAIFineTuningHandler()
    llm = EchoLLM()
    handler.attach(llm)
    llm.complete("question")
    handler.save_finetuning_events(path)


def _preferences(path: Path) -> None:
    (good,) = _dataset()
    bad = good.model_copy(update={"answer": Message(role="assistant", content="bad")})
    FinetuneDataset([good]).save_preferences(path, [Example.model_validate(bad.model_dump(exclude={"id"}))])


def _scorecard() -> Scorecard:
    from .evaluation.systems import card, example, quiet

    return quiet({"a": lambda row: row.answer_object()}, [example("q?", card("f"))])


WRITERS: dict[str, tuple[Callable[[Path], Any], int]] = {
    "write_json": (lambda path: write_json(path, {}), 0o600),
    "write_text": (lambda path: write_text(path, "x"), 0o600),
    "picture": (lambda path: write_text(path, "x", mode=PUBLIC), 0o644),
    "save_lines": (lambda path: save_lines(path, ["{}"]), 0o600),
    "dataset": (lambda path: _dataset().save(path), 0o600),
    "training file": (lambda path: _dataset().save(path, "openai"), 0o600),
    "preferences": (_preferences, 0o600),
    "fixed": (_fixed, 0o600),
    "handler": (_handler, 0o600),
    "scorecard": (lambda path: _scorecard().to_json(path), 0o600),
    "page": (lambda path: _scorecard().to_html(path), 0o600),
    "svg": (lambda path: _scorecard().to_svg(path), 0o644),
}
REFUSED = (OSError, ConfigurationError)
every_writer = pytest.mark.parametrize("name", WRITERS)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@every_writer
def test_a_new_file_has_the_mode_of_its_kind(name: str, tmp_path: Path) -> None:
    write, mode = WRITERS[name]
    before = os.umask(0o022)
    try:
        write(tmp_path / "new" / "file")
    finally:
        os.umask(before)
    assert mode_of(tmp_path / "new" / "file") == mode


@every_writer
@pytest.mark.parametrize("mode", [0o600, 0o644, 0o640, 0o664])
def test_a_replaced_file_keeps_its_mode(name: str, mode: int, tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("old")
    target.chmod(mode)
    WRITERS[name][0](target)
    assert target.read_text() != "old"
    assert mode_of(target) == mode
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@every_writer
@pytest.mark.parametrize("dangling", [False, True])
def test_a_link_stays_and_the_file_that_it_leads_to_is_written(
    name: str, dangling: bool, tmp_path: Path
) -> None:
    target = tmp_path / "elsewhere" / "file"
    if not dangling:
        target.parent.mkdir()
        target.write_text("old")
    (tmp_path / "second").symlink_to("elsewhere/file")
    (tmp_path / "first").symlink_to(tmp_path / "second")
    WRITERS[name][0](tmp_path / "first")
    assert (tmp_path / "first").is_symlink()
    assert (tmp_path / "second").is_symlink()
    assert target.read_text() != "old"
    assert [path.name for path in target.parent.iterdir()] == ["file"]


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))


def _loop(path: Path) -> None:
    path.symlink_to(path.with_name("back"))
    path.with_name("back").symlink_to(path)


NO_FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a pipe": (os.mkfifo, "it is a named pipe, expected a regular file"),
    "a folder": (Path.mkdir, "it is a folder, expected a regular file"),
    "a socket": (_socket, "it is a socket, expected a regular file"),
    "a link to a device": (lambda path: path.symlink_to("/dev/null"), "it is a device or a stream"),
    "a link to standard output": (lambda path: path.symlink_to("/dev/stdout"), "it is a device or a stream"),
    "links in a circle": (_loop, os.strerror(errno.ELOOP)),
}


@every_writer
@pytest.mark.parametrize("kind", NO_FILES)
def test_what_is_no_file_is_refused_and_stays(name: str, kind: str, tmp_path: Path) -> None:
    make, reason = NO_FILES[kind]
    target = tmp_path / "file"
    make(target)
    before = os.lstat(target)
    with pytest.raises(REFUSED, match=reason) as raised:
        WRITERS[name][0](target)
    assert str(target) in str(raised.value)
    after = os.lstat(target)
    assert (before.st_ino, before.st_mode, before.st_mtime_ns) == (
        after.st_ino,
        after.st_mode,
        after.st_mtime_ns,
    )
    assert sorted(path.name for path in tmp_path.iterdir()) in (["file"], ["back", "file"])


@every_writer
@pytest.mark.parametrize("path", ["/dev/stdout", "/dev/null", "/dev/fd/1", "/proc/self/fd/1"])
def test_a_stream_is_refused_whatever_it_leads_to(name: str, path: str) -> None:
    with pytest.raises(REFUSED, match="it is a device or a stream, expected the path of a file"):
        WRITERS[name][0](Path(path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
@every_writer
def test_a_folder_or_file_without_the_right_to_write_is_refused(name: str, tmp_path: Path) -> None:
    target = tmp_path / "closed" / "file"
    target.parent.mkdir()
    target.write_text("old")
    target.chmod(0o400)
    with pytest.raises(REFUSED, match="write-protected"):
        WRITERS[name][0](target)
    target.chmod(0o600)
    target.parent.chmod(0o500)
    with pytest.raises(REFUSED, match=os.strerror(errno.EACCES)):
        WRITERS[name][0](target)
    target.parent.chmod(0o700)
    assert target.read_text() == "old"


def test_a_folder_with_files_of_somebody_else_is_never_replaced(tmp_path: Path) -> None:
    write_folder(tmp_path / "target", "old")
    (tmp_path / "target" / "deep" / "thesis.tex").write_text("years of work")
    with pytest.raises(OSError, match=r"it contains deep/thesis\.tex, which would be lost; move that away"):
        write_folder(tmp_path / "target", "new")
    assert content(tmp_path / "target") == {"old", "years of work"}
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_a_folder_is_not_written_over_a_file(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("old")
    with pytest.raises(NotADirectoryError):
        write_folder(tmp_path / "target", "new")
    assert content(tmp_path / "target") == {"old"}


def test_a_link_to_a_folder_stays_and_the_folder_is_replaced(tmp_path: Path) -> None:
    write_folder(tmp_path / "disk" / "target", "old")
    (tmp_path / "disk" / "target").chmod(0o750)
    (tmp_path / "link").symlink_to("disk/target")
    write_folder(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert content(tmp_path / "disk" / "target") == {"new"}
    assert mode_of(tmp_path / "disk" / "target") == 0o750
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "link"]


@pytest.mark.parametrize("manager", [creating, replacing_folder])
def test_the_second_writer_of_one_output_is_told_who_works_there(manager: Any, tmp_path: Path) -> None:
    target = tmp_path / "out"
    with manager(target) as first:
        with pytest.raises(BlockingIOError, match=f"process {os.getpid()} is at work there"), manager(target):
            pass
        first.mkdir(exist_ok=True)
        (first / "a").write_text("whole")
    assert content(target) == {"whole"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_appeared_while_an_output_was_written_is_not_replaced(tmp_path: Path) -> None:
    target = tmp_path / "out"
    writing = creating(target)
    writing.__enter__().write_text("export")
    target.write_text("theirs")
    with pytest.raises(FileExistsError):
        writing.__exit__(None, None, None)
    assert target.read_text() == "theirs"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


_WORKER = """
import sys, time
from pathlib import Path
from llama_index_finetune_structured.files import creating, replacing
folder = Path(sys.argv[1])
with replacing(folder / "file") as file, creating(folder / "out") as out:
    file.write("half")
    file.flush()
    out.write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


def test_the_temporary_files_of_a_living_process_stay_and_of_a_killed_one_are_removed(tmp_path: Path) -> None:
    worker = subprocess.Popen(
        [sys.executable, "-c", _WORKER, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert worker.stdout is not None
    assert worker.stdout.readline() == "writing\n"
    try:
        before = sorted(path.name for path in tmp_path.iterdir())
        assert len(before) == 2
        write_file(tmp_path / "file", "mine")
        remove_leftovers(tmp_path)
        with pytest.raises(BlockingIOError, match=f"process {worker.pid} "), creating(tmp_path / "out"):
            pass
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*before, "file"])
    finally:
        worker.kill()
        worker.wait()
        worker.stdout.close()
    write_file(tmp_path / "file", "mine again")
    with creating(tmp_path / "out") as out:
        out.write_text("whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "out"]


def test_many_threads_write_one_file_and_one_of_them_wins_whole(tmp_path: Path) -> None:
    texts = [str(number) * 10_000 for number in range(8)]
    threads = [
        threading.Thread(target=lambda text=text: [write_file(tmp_path / "file", text) for _ in range(20)])
        for text in texts
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "file").read_text() in texts
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_names_as_long_as_the_file_system_allows_can_be_written(tmp_path: Path) -> None:
    for letter in ("x", "\N{GREEK SMALL LETTER ALPHA}"):
        name = letter * (255 // len(letter.encode()))
        write_file(tmp_path / name, "x")
        write_folder(tmp_path / name[:-1], "x")
    assert len(list(tmp_path.iterdir())) == 4


def test_files_at_any_depth_are_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").write_text("x")
    (tmp_path / "link").symlink_to("nowhere")
    flushed: list[Path] = []
    monkeypatch.setattr(files_module, "sync", flushed.append)
    sync_folder(tmp_path)
    assert flushed == [tmp_path / "a/b/c", tmp_path / "a/b", tmp_path / "a", tmp_path]


_WRITES = re.compile(
    r"os\.(write|replace|rename|link)\(|\.write_(text|bytes)\(|\.rename\(|open\([^)]*\"[wax]b?\"|shutil\.(copy|move)\w*\("
    r"|json\.dump\("
)
_OWN = {  # each with the reason why it is atomic
    "descriptors.py": "write_all itself",
    "files.py": "the atomic writes themselves",
    "local/train/checkpoints.py": "inside replacing_folder",
    "local/model/adapter.py": "inside replacing_folder",
    "local/export/merged.py": "inside replacing_folder",
    "cli/main.py": "the null device in place of a closed stream",
    "service/blobs.py": "a file of its own, renamed to its hash when it is whole and on disk",
}


def test_files_are_written_by_the_functions_that_write_atomically() -> None:
    """No module opens a file for writing, renames or writes to a descriptor beside these functions."""
    package = Path(files_module.__file__).parent
    found = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if _WRITES.search(path.read_text(encoding="utf-8"))
    }
    assert found == _OWN.keys()
