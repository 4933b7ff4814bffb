"""What became of a cascade's structured calls: counts, the share that was handed over, and the alarm of its drift."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..forks import reset_after_fork
from ..printable import package_logger
from ..trust.selection import HandOverShare, share_interval
from .prices import Prices

__all__ = ["WINDOW", "CascadeCounts", "Outcome", "money", "prometheus_text", "summary_of"]

_logger = package_logger(__name__)
WINDOW = 100
"""Calls of one schema over which the share that is handed over is watched; chosen: few enough to tell soon."""
Outcome = Literal["student", "teacher", "unsure", "unanswered", "text"]
"""Who answered a call: ``unsure``: the student, since the teacher failed; ``unanswered``: nobody; ``text``: the
teacher, a call without a schema."""
_OUTCOMES: tuple[Outcome, ...] = ("student", "teacher", "unsure", "unanswered", "text")


@dataclass
class _Watched:
    """The last calls for one schema."""

    expected: HandOverShare | None
    recent: deque[bool] = field(default_factory=lambda: deque(maxlen=WINDOW))
    is_drifting: bool = False
    episodes: int = 0

    def add(self, handed_over: bool) -> bool:
        """Count a call; True where an episode of drift begins with it."""
        self.recent.append(handed_over)
        if self.expected is None or len(self.recent) < WINDOW:
            return False
        was, self.is_drifting = self.is_drifting, sum(self.recent) not in self.expected.counts
        begins = self.is_drifting and not was
        self.episodes += begins
        return begins


class CascadeCounts:
    """Counters of one cascade in this process, safe with threads. A copy counts anew."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[Outcome] = Counter()
        self._watched: dict[str, _Watched] = {}
        reset_after_fork(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()

    def after_fork(self) -> None:
        """Recreate the lock, and count anew."""
        self._lock = threading.Lock()
        self._counts.clear()
        self._watched.clear()

    def text(self) -> None:
        """Count a call without a schema."""
        with self._lock:
            self._counts["text"] += 1

    def add(self, outcome: Outcome, key: str, expected: HandOverShare | None) -> None:
        """Count a structured call. ``key``: of its schema. ``expected``: its share to be handed over, where known."""
        with self._lock:
            self._counts[outcome] += 1
            watched = self._watched.get(key)
            if watched is None or watched.expected != expected:  # calibrated anew
                watched = self._watched[key] = _Watched(expected)
            begins = watched.add(outcome != "student")
            recent = sum(watched.recent)
        if begins and expected is not None:
            _logger.warning(
                "drift: of the last %d calls for one schema (%s), %d were handed over to the teacher; the held-out "
                "rows let expect %d to %d. The calls differ from the held-out rows: calibrate the student on newer "
                "ones, or train it on those that were handed over",
                WINDOW,
                key[:12],
                recent,
                min(expected.counts),
                max(expected.counts),
            )

    def outcomes(self) -> dict[Outcome, int]:
        """The number of calls by outcome."""
        with self._lock:
            return {outcome: self._counts[outcome] for outcome in _OUTCOMES}

    def schemas(self) -> dict[str, dict[str, Any]]:
        """Of each schema that was asked for, by key: the share of its last calls handed over, and the drift."""
        with self._lock:
            return {key: _described(watched) for key, watched in self._watched.items()}


def _described(watched: _Watched) -> dict[str, Any]:
    expected = watched.expected
    return {
        "recent_share": sum(watched.recent) / len(watched.recent),
        "expected_share": None if expected is None else expected.share,
        "expected_interval": None
        if expected is None
        else (min(expected.counts) / WINDOW, max(expected.counts) / WINDOW),
        "is_drifting": watched.is_drifting,
        "drift_episodes": watched.episodes,
    }


def summary_of(outcomes: Mapping[Outcome, int]) -> dict[str, Any]:
    """Counts by outcome as a summary shows them."""
    handed_over = outcomes["teacher"] + outcomes["unsure"] + outcomes["unanswered"]
    judged = outcomes["student"] + handed_over
    return {
        "answered_by_student": outcomes["student"],
        "answered_by_teacher": outcomes["teacher"],
        "unsure": outcomes["unsure"],
        "unanswered": outcomes["unanswered"],
        "texts": outcomes["text"],
        "handed_over": handed_over,
        "teacher_failures": outcomes["unsure"] + outcomes["unanswered"],
        "share_handed_over": handed_over / judged if judged else None,
        "share_interval": share_interval(handed_over, judged) if judged else None,
    }


def money(
    prices: Prices, outcomes: Mapping[Outcome, int], tokens: Mapping[str, Mapping[str, int]]
) -> dict[str, Any]:
    """What a cascade's calls cost, and what they saved against asking the teacher alone.

    ``saved``: for each answer of the student the mean price of the teacher's answers so far, less what the student
    itself costs; None before the teacher has answered.
    """
    teacher = prices.of_teacher(**tokens["teacher"])
    asked = sum(outcomes.values()) - outcomes["text"]
    student = prices.student_per_query * asked
    saved = None
    if outcomes["teacher"]:
        saved = outcomes["student"] * teacher / outcomes["teacher"] - student
    return {
        "spent": teacher + prices.of_teacher(**tokens["text"]) + student,
        "saved": saved,
        "currency": prices.currency,
    }


def prometheus_text(
    outcomes: Mapping[Outcome, int],
    tokens: Mapping[str, Mapping[str, int]],
    drift_episodes: int,
    drifting: int,
) -> str:
    """Counters in Prometheus' exposition format (https://prometheus.io/docs/instrumenting/exposition_formats/)."""
    lines = [
        *_metric(
            "cascade_calls_total",
            "counter",
            "Calls by who answered.",
            ((f'answered_by="{outcome}"', count) for outcome, count in outcomes.items()),
        ),
        *_metric(
            "cascade_tokens_total",
            "counter",
            "Tokens by model and kind.",
            (
                (f'role="{role}",kind="{name.removesuffix("_tokens")}"', count)
                for role, counts in tokens.items()
                for name, count in counts.items()
            ),
        ),
        *_metric(
            "cascade_drift_episodes_total", "counter", "Episodes of drift that began.", [("", drift_episodes)]
        ),
        *_metric("cascade_drifting_schemas", "gauge", "Schemas whose calls drift now.", [("", drifting)]),
    ]
    return "\n".join(lines) + "\n"


def _metric(name: str, kind: str, says: str, values: Iterable[tuple[str, int]]) -> Iterable[str]:
    yield f"# HELP {name} {says}"
    yield f"# TYPE {name} {kind}"
    for labels, value in values:
        yield f"{name}{{{labels}}} {value}" if labels else f"{name} {value}"
