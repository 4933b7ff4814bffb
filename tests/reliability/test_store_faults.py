"""The disk may fail at any step: acknowledged records stay, and of refused ones nothing is in the file."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llama_index_finetune_structured import descriptors
from llama_index_finetune_structured import jsonl_store as store_module
from llama_index_finetune_structured.jsonl_store import JsonlStore, read_shards


class FailingOs:
    """The os module whose k-th call of one function fails: with an error code, or a short write."""

    def __init__(self, step: str, fails_at: int, how: str) -> None:
        self.step, self.left, self.how = step, fails_at, how
        self.failed = False

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        return self._failing(real) if name == self.step else real

    def _failing(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            self.left -= 1
            if self.left != 0:
                return real(*args)
            self.failed = True
            if self.how == "short":
                return real(args[0], args[1][: len(args[1]) // 2])
            raise OSError(getattr(errno, self.how), os.strerror(getattr(errno, self.how)))

        return call


def numbers(path: Path) -> list[int]:
    return [json.loads(line.raw)["number"] for line in read_shards(path)]


@pytest.mark.parametrize("fails_at", range(1, 8))
@pytest.mark.parametrize(
    ("step", "how"),
    [("write", "ENOSPC"), ("write", "EIO"), ("write", "short"), ("fsync", "EIO"), ("ftruncate", "EIO")],
)
def test_whatever_fails_acknowledged_records_stay_and_others_leave_nothing(
    step: str, how: str, fails_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "records.jsonl"
    path.write_bytes(b'{"number": -1}\n{"number": torn')
    failing = FailingOs(step, fails_at, how)
    monkeypatch.setattr(store_module, "os", failing)
    monkeypatch.setattr(descriptors, "os", failing)
    store = JsonlStore(path, fsync=True)
    acknowledged = [-1]
    for number in range(10):
        try:
            store.append(json.dumps({"number": number, "text": "x" * 100}).encode())
        except OSError:
            continue
        acknowledged.append(number)
    assert how != "short" or acknowledged == list(range(-1, 10)), "the rest of a short write is written"
    assert len(acknowledged) >= 9
    assert numbers(path) == acknowledged
    store.close()
    monkeypatch.undo()
    again = JsonlStore(path)
    again.append(b'{"number": 99}')
    assert numbers(path) == [*acknowledged, 99]


def test_a_full_disk_whose_repair_fails_too_is_repaired_before_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk takes half of the record, then nothing, and the half cannot be cut off at once."""
    path = tmp_path / "records.jsonl"
    store = JsonlStore(path)
    store.append(b'{"number": 0}')
    short, full = FailingOs("write", 1, "short"), FailingOs("write", 2, "ENOSPC")
    monkeypatch.setattr(short, "write", lambda *args: full.write(args[0], args[1][:7]), raising=False)
    monkeypatch.setattr(descriptors, "os", short)
    broken = FailingOs("ftruncate", 1, "EIO")
    monkeypatch.setattr(store_module, "os", broken)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        store.append(b'{"number": 1}')
    assert full.failed
    assert broken.failed
    assert path.read_bytes() == b'{"number": 0}\n{"numbe'
    assert numbers(path) == [0]
    monkeypatch.undo()
    store.append(b'{"number": 2}')
    assert numbers(path) == [0, 2]
