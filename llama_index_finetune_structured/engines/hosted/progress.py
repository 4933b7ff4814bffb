"""Steps and losses of a running job, as a progress bar and as rows of metrics."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

from ...printable import one_line
from ...progress_bar import progress_bar

__all__ = ["Progress", "metric_row", "metric_rows"]

# OpenAI's event messages, for events that carry no data
_STEP_MESSAGE = re.compile(
    r"Step (?P<step>\d{1,15})(?:/(?P<total>\d{1,15}))?: "
    r"training loss=(?P<loss>\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)"
)

_LARGEST_COUNT = 10**15  # chosen: above any count of steps or tokens


def metric_row(event: Any) -> dict[str, float]:
    """The numbers of an event (step, total_steps, train_loss, ...); empty where it has no step."""
    data = getattr(event, "data", None)
    row: dict[str, float] = {}
    if isinstance(data, dict):
        row = {k: v for k, v in data.items() if isinstance(v, float) or _is_count(v)}
    if not math.isfinite(row.get("step", 0)):
        del row["step"]
    if "step" not in row and (match := _STEP_MESSAGE.search(str(getattr(event, "message", "")))):
        row["step"] = int(match["step"])
        row["train_loss"] = float(match["loss"])
        if match["total"]:
            row["total_steps"] = int(match["total"])
    return row if "step" in row else {}


def _is_count(value: Any) -> bool:
    """Whether a value is an integer of a size that steps and tokens have: JSON allows any number of digits."""
    return type(value) is int and abs(value) < _LARGEST_COUNT


def metric_rows(events: Iterable[Any]) -> list[dict[str, float]]:
    """One row for each step, in order; later events of a step are merged into its row."""
    by_step: dict[float, dict[str, float]] = {}
    for event in events:
        if row := metric_row(event):
            by_step.setdefault(row["step"], {}).update(row)
    return [by_step[step] for step in sorted(by_step)]


class Progress:
    """A progress bar over a job's steps, shown on a terminal, or always when ``verbose``."""

    def __init__(self, title: str, *, verbose: bool) -> None:
        self._bar = progress_bar(desc=one_line(title), unit="step", disable=False if verbose else None)
        self._seen: set[str] = set()
        self.latest: dict[str, float] = {}

    def take(self, status: str, events: Iterable[Any]) -> None:
        """Show the status and the new ones among ``events``, which are sorted newest first."""
        for event in reversed(list(events)):
            name = str(getattr(event, "id", event))
            if name in self._seen:
                continue
            self._seen.add(name)
            self._show(metric_row(event))
        self._bar.set_postfix_str(self._label(status))

    def _show(self, row: dict[str, float]) -> None:
        if not row:
            return
        self.latest = {**self.latest, **row}
        if "total_steps" in row:
            self._bar.total = row["total_steps"]
        self._bar.update(max(0, row["step"] - self._bar.n))

    def _label(self, status: str) -> str:
        loss = self.latest.get("train_loss")
        return one_line(status if loss is None else f"{status}, loss {loss:.3f}")

    def close(self) -> None:
        self._bar.close()
