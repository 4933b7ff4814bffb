"""Files on file systems that can do less, in folders of other users, and in folders that hold a user's own files."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llama_index_finetune_structured.errors import CheckpointError
from llama_index_finetune_structured.files import (
    creating,
    read_json,
    remove_leftovers,
    replacing_folder,
    write_json,
    write_text,
)
from llama_index_finetune_structured.locks import locked_folder


def _write_text(path: Path) -> None:
    write_text(path, "new")


def _replace_folder(path: Path) -> None:
    with replacing_folder(path) as folder:
        (folder / "name").write_text("new")


def _create(path: Path) -> None:
    path.unlink(missing_ok=True)
    with creating(path) as file:
        file.write_text("new")


_WRITES = pytest.mark.parametrize(
    ("write", "kept"), [(_write_text, ""), (_replace_folder, "name"), (_create, "")]
)


def _refusing(number: int) -> Callable[..., Any]:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    return refuse


def _write_twice(write: Callable[[Path], None], kept: str, folder: Path) -> None:
    for _ in range(2):
        write(folder / "output")
        assert (folder / "output" / kept if kept else folder / "output").read_text() == "new"
    assert [path.name for path in folder.iterdir()] == ["output"]


@_WRITES
@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF])
def test_a_file_system_that_cannot_flush_folders_is_written(
    write: Callable[[Path], None], kept: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            _refusing(number)()
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    _write_twice(write, kept, tmp_path)


@_WRITES
@pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO])
def test_a_file_that_cannot_be_flushed_is_an_error(
    write: Callable[[Path], None], kept: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", _refusing(number))
    with pytest.raises(Exception, match=os.strerror(number)):
        write(tmp_path / "output")
    assert list(tmp_path.iterdir()) == []


@_WRITES
@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_modes_is_written(
    write: Callable[[Path], None], kept: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "chmod", _refusing(number))
    _write_twice(write, kept, tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
@pytest.mark.parametrize(("write", "kept"), [(_write_text, ""), (_replace_folder, "name")])
def test_what_root_replaces_stays_the_property_of_its_owner_and_group(
    write: Callable[[Path], None], kept: str, tmp_path: Path
) -> None:
    target = tmp_path / "output"
    write(target)
    target.chmod(0o750)
    os.chown(target, 12345, 23456)
    write(target)
    found = target.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (12345, 23456, 0o750)


def test_a_folder_whose_group_cannot_be_kept_gives_no_other_group_its_rights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, real = tmp_path / "output", os.stat
    _replace_folder(target)
    target.chmod(0o750)

    def other_group(path: Any, **options: Any) -> os.stat_result:
        found = real(path, **options)
        return os.stat_result((*found[:5], found.st_gid + 1, *found[6:])) if path == target else found

    monkeypatch.setattr(os, "stat", other_group)
    monkeypatch.setattr(os, "chown", _refusing(errno.EPERM))
    _replace_folder(target)
    monkeypatch.undo()
    assert stat.S_IMODE(target.stat().st_mode) == 0o700


@pytest.mark.parametrize("name", ["old", "new"])
@pytest.mark.parametrize("write", [_replace_folder, lambda path: remove_leftovers(path.parent)])
def test_a_leftover_that_is_a_link_moves_and_removes_nothing_of_where_it_leads(
    name: str, write: Callable[[Path], None], tmp_path: Path
) -> None:
    home, run = tmp_path / "home", tmp_path / "run"
    (home / "papers").mkdir(parents=True)
    (home / "thesis.txt").write_text("mine")
    (run / ".unfinished-adapter").mkdir(parents=True)
    (run / ".unfinished-adapter" / name).symlink_to(home)
    write(run / "adapter")
    assert {path.name for path in home.iterdir()} == {"papers", "thesis.txt"}
    assert {path.name for path in run.iterdir()} <= {"adapter"}


def test_a_lock_file_of_another_program_keeps_its_content(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("version = 1\n")
    with pytest.raises(CheckpointError, match="expected a lock file"), locked_folder(tmp_path):
        pass
    assert (tmp_path / ".lock").read_text() == "version = 1\n"
    (tmp_path / ".lock").write_text("4711\n")  # of a run that has ended
    with locked_folder(tmp_path):
        assert (tmp_path / ".lock").read_text() == f"{os.getpid()}\n"


def test_names_that_are_no_utf8_are_read_back_from_json(tmp_path: Path) -> None:
    path, value = tmp_path / "output", {"name": os.fsdecode(b"x\xe9")}
    write_json(path, value)
    assert read_json(path) == value


def test_json_of_endless_nesting_is_a_value_error(tmp_path: Path) -> None:
    (tmp_path / "deep").write_text('{"a": ' + "[" * 100_000)
    with pytest.raises(ValueError, match="nested too deeply"):
        read_json(tmp_path / "deep")
