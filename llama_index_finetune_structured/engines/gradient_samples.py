"""Gradient's training lines: one ``{"inputs": ...}`` each."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import DatasetError
from ..jsonl import READ_ERRORS, Line, one_line_reason, parse_line, read_lines

__all__ = ["read_samples"]


def read_samples(path: Path, max_samples: int | None = None) -> list[dict[str, Any]]:
    """The samples of the file's first ``max_samples`` lines.

    ``inputs`` is a text, or parts ``{"value", "trainable", "parseSpecialTokens"}`` of one;
    ``fineTuningParameters`` may hold a multiplier. Raises DatasetError with ``file:line``.
    """
    samples: list[dict[str, Any]] = []
    for line in islice(read_lines(path, torn_from=None), max_samples):
        samples.append(_sample(line))
    if not samples:
        raise DatasetError(f"{path}: no training lines")
    return samples


def _sample(line: Line) -> dict[str, Any]:
    try:
        row = parse_line(line.raw)
    except READ_ERRORS as error:
        raise DatasetError(f"{line.where}: {one_line_reason(error)}") from None
    inputs = row.get("inputs") if isinstance(row, dict) else None
    if not _is_text(inputs) and not _is_parts(inputs):
        raise DatasetError(
            f'{line.where}: expected {{"inputs": text}} or parts {{"value": text, "trainable": true or false}}; '
            'GradientAIFineTuningHandler and FinetuneDataset.save(format="gradient") write such lines'
        )
    kept = {"inputs": inputs}
    if isinstance(row.get("fineTuningParameters"), dict):
        kept["fineTuningParameters"] = row["fineTuningParameters"]
    return kept


def _is_text(inputs: object) -> bool:
    return isinstance(inputs, str) and bool(inputs)


def _is_parts(inputs: object) -> bool:
    return (
        isinstance(inputs, list)
        and all(isinstance(part, dict) and _is_text(part.get("value")) for part in inputs)
        and any(part.get("trainable", True) for part in inputs)
    )
