"""Thresholds chosen on held-out answers keep their promise on other answers."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_index_finetune_structured.trust.selection import (
    accuracy_threshold,
    budget_threshold,
    expected_share,
    rows_needed,
    share_interval,
)

Scored = list[tuple[float, bool]]
Random = np.random.Generator


def _logistic(mean: float, spread: float) -> Callable[[Random, int], Scored]:
    """Calibrated probabilities whose log-odds are normal."""

    def drawn(rng: Random, rows: int) -> Scored:
        chance = 1 / (1 + np.exp(-rng.normal(math.log(mean / (1 - mean)), spread, rows)))
        return list(zip(chance.tolist(), (rng.random(rows) < chance).tolist(), strict=True))

    return drawn


def _uninformed(rng: Random, rows: int) -> Scored:
    """Probabilities that tell nothing, of answers whose accuracy is the promised one."""
    return list(zip(rng.random(rows).tolist(), (rng.random(rows) < 0.9).tolist(), strict=True))


def _tied(rng: Random, rows: int) -> Scored:
    return [(round(chance, 1), right) for chance, right in _logistic(0.8, 2)(rng, rows)]


def _overconfident(rng: Random, rows: int) -> Scored:
    """High probabilities of answers that are right in nine of ten cases at most."""
    scored = _logistic(0.8, 3)(rng, rows)
    return [(chance, bool(right and rng.random() < 0.9)) for chance, right in scored]


WORLDS = {
    "logistic": _logistic(0.8, 1.5),
    "mostly right": _logistic(0.92, 1),
    "uninformed": _uninformed,
    "tied": _tied,
    "overconfident": _overconfident,
}


@pytest.mark.parametrize("world", WORLDS)
def test_the_promised_accuracy_is_measured_on_the_other_half_in_95_of_100_splits(world: str) -> None:
    """200 splits, each of another set: the number of broken promises may be 10, and 17 by chance."""
    rng, accuracy, rows = np.random.default_rng(0), 0.9, 200
    broken = 0
    for _ in range(200):
        scored = WORLDS[world](rng, 2 * rows)
        threshold = accuracy_threshold(scored[:rows], accuracy)
        if threshold is not None:
            accepted = [right for chance, right in scored[rows:] if chance >= threshold]
            broken += sum(accepted) < accuracy * len(accepted) - 1e-9
    assert broken <= 10


def test_a_good_student_has_most_of_its_answers_accepted() -> None:
    rng = np.random.default_rng(0)
    scored = _logistic(0.97, 1.5)(rng, 1000)
    threshold = accuracy_threshold(scored, 0.9)
    assert threshold is not None
    assert expected_share(scored, threshold, 100).share < 0.1


@pytest.mark.parametrize("accuracy", [0.5, 0.8, 0.9, 0.95, 0.99])
def test_as_many_right_answers_as_needed_show_an_accuracy_and_one_fewer_does_not(accuracy: float) -> None:
    rows = rows_needed(accuracy)
    assert accuracy_threshold([(0.7, True)] * rows, accuracy) == 0.7
    assert accuracy_threshold([(0.7, True)] * (rows - 1), accuracy) is None


@given(st.lists(st.tuples(st.integers(0, 6).map(lambda n: n / 6), st.booleans()), max_size=150))
@settings(max_examples=30, deadline=None)
def test_the_order_of_the_rows_means_nothing_and_equal_probabilities_are_accepted_together(
    scored: Scored,
) -> None:
    threshold = accuracy_threshold(scored, 0.8)
    assert accuracy_threshold(scored[::-1], 0.8) == threshold
    if threshold is not None:
        accepted = [right for chance, right in scored if chance >= threshold]
        assert sum(accepted) > 0.8 * len(accepted)


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=100),
    st.floats(0.01, 0.99),
)
@settings(max_examples=50, deadline=None)
def test_a_budget_is_never_exceeded_on_the_held_out_rows(chances: list[float], budget: float) -> None:
    threshold = budget_threshold([(chance, True) for chance in chances], budget)
    assert sum(chance < threshold for chance in chances) <= budget * len(chances) + 1e-6


def test_a_share_has_the_interval_of_clopper_and_pearson() -> None:
    low, high = share_interval(0, 20)
    assert low == 0
    assert high == pytest.approx(1 - 0.025 ** (1 / 20))
