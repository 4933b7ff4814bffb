"""A progress bar never ends what it shows."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import TextIO

import pytest

from llama_index_finetune_structured import FinetuneDataset, compare
from llama_index_finetune_structured.progress_bar import progress_bar


class _Broken(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError

    def flush(self) -> None:
        raise BrokenPipeError

    def isatty(self) -> bool:
        raise ValueError("I/O operation on closed file")


def _full() -> TextIO:
    return Path("/dev/full").open("w", buffering=1)


def _closed() -> TextIO:
    closed = io.StringIO()
    closed.close()
    return closed


@pytest.mark.parametrize("stderr", [lambda: None, _Broken, _closed, _full])
def test_a_bar_goes_on_where_stderr_cannot_be_written(
    stderr: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", stderr())  # type: ignore[operator]
    with progress_bar(total=3, desc="x", mininterval=0) as bar:
        for _ in range(3):
            bar.update()
            bar.set_postfix_str("loss=1")
    assert list(progress_bar([1, 2], disable=None)) == [1, 2]
    rows = FinetuneDataset.from_pairs([("q", '{"a": 1}')], schema={"type": "object"})
    assert compare({"gold": lambda example: example.answer_object()}, rows).systems["gold"].schema_valid == 1


def test_a_bar_is_shown_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in progress_bar(range(2), desc="two rows"):
        pass
    assert "two rows: 100%" in capsys.readouterr().err
