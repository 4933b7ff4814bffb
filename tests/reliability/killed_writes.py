"""Writes of every kind, killed or stopped by the disk at every step, each in a forked process; run as a script.

    python -m tests.reliability.killed_writes FOLDER

Prints one JSON object: the number of tries by writer, and the list of those that broke a promise.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from llama_index_finetune_structured import FinetuneDataset, check
from llama_index_finetune_structured.engines.hosted.journal import Run, RunJournal
from llama_index_finetune_structured.errors import FinetuneStructuredError
from llama_index_finetune_structured.files import (
    creating,
    remove_leftovers,
    replacing_folder,
    write_json,
    write_text,
)
from llama_index_finetune_structured.jsonl import save_lines
from llama_index_finetune_structured.local.train.checkpoints import newest_checkpoint, save_checkpoint
from tests.local.killed_runs import die_at

LENGTH = 30_000
Write = Callable[[Path, str], Any]


def _dataset(target: Path, text: str) -> None:
    FinetuneDataset.from_pairs([(text * LENGTH, "an answer")]).save(target)


def _fixed(target: Path, text: str) -> None:
    pairs = [(f"{text} " * LENGTH, "an answer")]
    check(FinetuneDataset.from_pairs(pairs), target="openai").fix(target)


def _journal(target: Path, text: str) -> None:
    run = Run(engine="openai", provider="p", api_base="a", base_model=text * LENGTH, data_path="d")
    RunJournal(target.parent).write(run)


def _folder(target: Path, text: str) -> None:
    with replacing_folder(target) as unfinished:
        (unfinished / "deep").mkdir()
        (unfinished / "a").write_text(text * LENGTH)
        (unfinished / "deep" / "b").write_text(text * LENGTH)


def _checkpoint(target: Path, text: str) -> None:
    save_checkpoint(target.parent, 1, {"w": torch.full((LENGTH,), float(ord(text)))}, {"text": text})


def _export(target: Path, text: str) -> None:
    with creating(target) as path:
        path.write_text(text * LENGTH)


def _export_folder(target: Path, text: str) -> None:
    with creating(target) as path:
        path.mkdir()
        (path / "a").write_text(text * LENGTH)
        (path / "b").write_text(text * LENGTH)


def _json(target: Path, text: str) -> None:
    write_json(target, {"text": text * LENGTH})


def _text(target: Path, text: str) -> None:
    write_text(target, text * LENGTH)


def _lines(target: Path, text: str) -> None:
    save_lines(target, [text * LENGTH])


WRITERS: dict[str, tuple[str, Write]] = {
    "json": ("a.json", _json),
    "text": ("a.html", _text),
    "lines": ("a.jsonl", _lines),
    "dataset": ("data.jsonl", _dataset),
    "fixed": ("fixed.jsonl", _fixed),
    "journal": ("run.json", _journal),
    "folder": ("folder", _folder),
    "checkpoint": ("checkpoint-00000001", _checkpoint),
    "export": ("tuned.gguf", _export),
    "export_folder": ("merged", _export_folder),
}
NEVER_REPLACES = ("export", "export_folder")
FOLDERS = ("folder", "checkpoint", "export_folder")
STEPS = ("open", "mkdir", "fsync", "replace", "unlink", "rmdir", "chmod")


def content(target: Path) -> dict[str, bytes] | None:
    """Every file's bytes by its name; None where nothing is there."""
    if not target.exists():
        return None
    files = [target] if target.is_file() else [path for path in target.rglob("*") if path.is_file()]
    return {path.relative_to(target).as_posix(): _without_time(path.read_bytes()) for path in files}


def _without_time(data: bytes) -> bytes:
    """A journal without its times and its checksum, which is of them too."""
    return b"\n".join(line for line in data.splitlines() if b"_at" not in line and b'"sha256"' not in line)


def in_a_fork(work: Callable[[], None]) -> int:
    """Run ``work`` in a forked process; returns its wait status: exit code 0, 3 for an expected error, or a signal."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except (OSError, FinetuneStructuredError):
            code = 3
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1]


class Tries:
    """The tries of one writer in a folder of its own; ``broken`` lists the promises that were not kept."""

    def __init__(self, name: str, root: Path) -> None:
        file, self.write = WRITERS[name]
        self.name, self.folder = name, root / name
        self.target = self.folder / "in" / file
        self.old_text = None if name in NEVER_REPLACES else "o"
        self.count = 0
        self.broken: list[str] = []
        self.old, self.new = self._written(self.old_text), self._written("n")

    def _written(self, text: str | None) -> dict[str, bytes] | None:
        self._start(text)
        return content(self.target)

    def _start(self, text: str | None) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.target.parent.mkdir(parents=True)
        if text is not None:
            self.write(self.target, text)

    def _require(self, kept: bool, what: str) -> None:
        if not kept:
            beside = sorted(path.name for path in self.target.parent.iterdir())
            self.broken.append(f"{self.name}: {what}: {beside}")

    def _require_nothing_beside(self, what: str) -> None:
        self._require([path.name for path in self.target.parent.iterdir()] == [self.target.name], what)

    def killed(self, step: str, nth: int, when: str) -> bool:
        """One kill; False where the write has no ``nth`` such step."""
        self._start(self.old_text)

        def work() -> None:
            die_at(os, step, nth, when)
            self.write(self.target, "n")

        where = f"killed {when} {step} {nth}"
        if in_a_fork(work) != signal.SIGKILL:
            return False
        self.count += 1
        if self.name in FOLDERS:  # the next start puts an old folder back that was moved aside
            remove_leftovers(self.target.parent)
        left = content(self.target)
        self._require(left in (self.old, self.new), f"{where}: neither old nor new")
        if self.name not in NEVER_REPLACES or left is None:
            self.write(self.target, "n")
            self._require(content(self.target) == self.new, f"{where}: the next write")
            self._require_nothing_beside(f"{where}: left over")
        return True

    def full(self, limit: int) -> None:
        """One write on a disk on which no file can have more than ``limit`` bytes."""
        self._start(self.old_text)

        def work() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            self.write(self.target, "n")

        self._require(in_a_fork(work) == 3 << 8, f"{limit} bytes: no error")
        self.count += 1
        self._require(content(self.target) == self.old, f"{limit} bytes: not the old content")
        if self.old is None:
            self._require(not list(self.target.parent.iterdir()), f"{limit} bytes: left over")
        else:
            self._require_nothing_beside(f"{limit} bytes: left over")


def kills() -> Iterator[tuple[str, str]]:
    for step in STEPS:
        for when in ("before", "after"):
            yield step, when


def main(root: Path) -> None:
    torch.set_num_threads(1)
    tries: Counter[str] = Counter()
    broken = []
    for name in WRITERS:
        one = Tries(name, root)
        for step, when in kills():
            nth = 1
            while one.killed(step, nth, when):
                nth += 1
        for limit in (8, 4_096, 9_000, 20_000):
            one.full(limit)
        if name == "checkpoint":
            one._start("o")
            assert newest_checkpoint(one.target.parent) is not None
        tries[name] = one.count
        broken += one.broken
    print(json.dumps({"tries": tries, "broken": broken}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
