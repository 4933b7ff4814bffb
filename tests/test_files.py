"""Whichever step of a write fails, the old or the new file or folder is there and no temporary one."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from llama_index_finetune_structured import files as files_module
from llama_index_finetune_structured.files import replacing, replacing_folder


class FailingOs:
    """The os module whose k-th call of one function fails."""

    def __init__(self, step: str, fails_at: int, number: int) -> None:
        self.step, self.left, self.number = step, fails_at, number

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)

        def call(*args: Any) -> Any:
            self.left -= 1
            if self.left == 0:
                raise OSError(self.number, os.strerror(self.number))
            return real(*args)

        return call if name == self.step else real


def write_file(target: Path, text: str) -> None:
    with replacing(target) as file:
        file.write(text)


def write_folder(target: Path, text: str) -> None:
    with replacing_folder(target) as unfinished:
        (unfinished / "a").write_text(text)
        (unfinished / "b").write_text(text)


def content(target: Path) -> set[str]:
    if target.is_file():
        return {target.read_text()}
    return {file.read_text() for file in target.iterdir()}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("fails_at", range(1, 5))
@pytest.mark.parametrize("write", [write_file, write_folder])
def test_a_failing_disk_leaves_old_or_new_and_nothing_beside_it(
    write: Any, fails_at: int, step: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "new" / "target"
    write(target, "old")
    failing = FailingOs(step, fails_at, number)
    monkeypatch.setattr(files_module, "os", failing)
    if failing_steps(write, step) >= fails_at:
        with pytest.raises(OSError, match=os.strerror(number)):
            write(target, "new")
        # a folder cannot be exchanged in one step: one that was in the way is gone before the last step
        assert not target.exists() or content(target) == {"old"}
        assert target.exists() or (write is write_folder and step == "replace")
    else:
        write(target, "new")
        assert content(target) == {"new"}
    assert [path.name for path in target.parent.iterdir()] == ([target.name] if target.exists() else [])


def failing_steps(write: Any, step: str) -> int:
    """How often ``write`` makes that call."""
    return 3 if write is write_folder and step == "fsync" else 1


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, GeneratorExit])
@pytest.mark.parametrize("manager", [replacing, replacing_folder])
def test_a_block_that_fails_keeps_the_old(manager: Any, error: type[BaseException], tmp_path: Path) -> None:
    target = tmp_path / "target"
    (write_file if manager is replacing else write_folder)(target, "old")
    with pytest.raises(error), manager(target):
        raise error
    assert content(target) == {"old"}
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_a_written_file_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    write_file(tmp_path / "target", "x")
    assert (tmp_path / "target").stat().st_mode & 0o777 == 0o600


def test_a_target_that_is_a_folder_is_unchanged(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    with pytest.raises(OSError, match="target"):
        write_file(tmp_path / "target", "x")
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    shutil.rmtree(tmp_path / "target")
