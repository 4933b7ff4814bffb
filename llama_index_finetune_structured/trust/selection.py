"""Which answers are sure enough: thresholds on probabilities, chosen on held-out answers with a guarantee.

Held-out answers are pairs: the probability that the answer is right, and whether it was. The guarantee of an accuracy
is by Learn-then-Test (Angelopoulos et al., https://arxiv.org/abs/2110.01052): fixed sequences of tests, from several
starts, which are corrected by Bonferroni.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from ..errors import MissingDependencyError

if TYPE_CHECKING:
    from types import ModuleType

__all__ = [
    "HandOverShare",
    "accuracy_threshold",
    "budget_threshold",
    "expected_share",
    "rows_needed",
    "share_interval",
]

Held = Sequence[tuple[float, bool]]
_DELTA = 0.05  # the promise may fail in this share of the choices
_DRIFT = 1e-4  # chosen: of a window without drift, to lie outside of its interval; each call ends a window
_MARGIN = 1e-9  # of floating point, in counts
_STARTS = 4  # of sequences; chosen by simulation: the most answers accepted


class HandOverShare(NamedTuple):
    """The share of calls that is handed over, and the counts within a window that are no sign of a change."""

    share: float
    counts: range


def accuracy_threshold(held_out: Held, accuracy: float) -> float | None:
    """The least threshold found at which accepted answers are right at this share; None where none is found.

    With a confidence of 95%, whatever the probabilities are: the expected share of right answers among those accepted
    reaches the accuracy. And of as many further answers as there are held-out ones, or more, the share measured does:
    this test is exact for one threshold. That the best of several is taken costs nothing that simulations would show,
    as the first test is the stricter one then (``tests/trust/test_selection.py``).
    """
    ordered = sorted(held_out, reverse=True)
    rows = len(ordered)
    right = list(itertools.accumulate(is_right for _, is_right in ordered))
    ends = [n for n in range(1, rows + 1) if n == rows or ordered[n][0] < ordered[n - 1][0]]
    shown = functools.cache(lambda accepted: _is_shown(accepted, right[accepted - 1], accuracy))
    least = rows_needed(accuracy)
    found = 0
    for n in range(_STARTS):
        start = least + (rows - least) * n // (_STARTS - 1)
        sequence = itertools.takewhile(shown, (end for end in ends if end >= start))
        found = max(found, *sequence, 0)
    return ordered[found - 1][0] if found else None


@functools.cache
def rows_needed(accuracy: float) -> int:
    """The least number of accepted answers that can show an accuracy: all of them right."""
    rows = max(1, math.ceil(math.log(_DELTA / _STARTS) / math.log(accuracy)))
    while not _is_shown(rows, rows, accuracy):
        rows += 1
    return rows


def _is_shown(accepted: int, right: int, accuracy: float) -> bool:
    """Whether so many right answers of those accepted show the accuracy, in expectation and as measured again."""
    if not right:
        return False
    stats = _stats()
    wrong = accepted - right
    lower = stats.beta.ppf(_DELTA / _STARTS, right, wrong + 1)  # Clopper and Pearson
    # Of as many further answers, too few are right at most so often: the two halves are exchangeable.
    too_few = math.ceil(accuracy * accepted - _MARGIN) - 1
    again = stats.hypergeom.sf(right - 1, 2 * accepted, right + too_few, accepted)
    return bool(lower >= accuracy and again <= _DELTA)


def budget_threshold(held_out: Held, budget: float) -> float:
    """The least threshold at which no more than this share of the held-out answers is handed over."""
    ordered = sorted(probability for probability, _ in held_out)
    return ordered[math.floor(budget * len(ordered) + _MARGIN)]


def expected_share(held_out: Held, threshold: float, window: int) -> HandOverShare:
    """The share below a threshold, and its counts in a window of calls like those that were held out.

    The interval is that of the beta-binomial distribution (Jeffreys' prior), which has the noise of the window and of
    the held-out rows.
    """
    below = sum(probability < threshold for probability, _ in held_out)
    rows = len(held_out)
    counts = _stats().betabinom(window, below + 0.5, rows - below + 0.5)
    least, most = counts.ppf([_DRIFT / 2, 1 - _DRIFT / 2])
    return HandOverShare(below / rows, range(int(least), int(most) + 1))


def share_interval(part: int, whole: int) -> tuple[float, float]:
    """The 95% interval of a share by Clopper and Pearson."""
    interval = _stats().binomtest(part, whole).proportion_ci(0.95, "exact")
    return float(interval.low), float(interval.high)


def _stats() -> ModuleType:
    try:
        from scipy import stats  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingDependencyError("scipy", "local", "Cascade") from error
    return stats  # type: ignore[no-any-return]
