"""Calibration: likelier tokens never make an answer less sure, and few rows change little."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_index_finetune_structured.trust.answer_trust import LogProbability
from llama_index_finetune_structured.trust.calibration import Calibration, Judged, Logistic, fitted
from llama_index_finetune_structured.trust.cross_fitting import (
    JudgedAnswer,
    cross_fitted,
    fitted_calibration,
)


def tokens(probability: float) -> LogProbability:
    total = math.log(probability)
    return LogProbability(total=total, least=total, unmasked=total)


def answers(count: int, seed: int = 0, documents: int = 0) -> list[JudgedAnswer]:
    """Answers that are right as often as their tokens say."""
    drawn = random.Random(seed)
    shares = [drawn.uniform(0.05, 0.999) for _ in range(count)]
    return [
        JudgedAnswer(
            tokens(share),
            drawn.random() < share,
            document=f"d{at % documents}" if documents else None,
        )
        for at, share in enumerate(shares)
    ]


logarithms = st.floats(-30, 0)
judgements = st.lists(
    st.builds(
        Judged,
        st.builds(
            LogProbability,
            total=logarithms,
            least=logarithms,
            unmasked=logarithms,
            tagged=st.none() | logarithms,
        ),
        st.sampled_from(["", "a", "b[].c"]),
        st.booleans(),
    ),
    max_size=30,
)


@settings(deadline=None, max_examples=50)
@given(judgements)
def test_likelier_tokens_never_make_an_answer_less_sure(judged: list[Judged]) -> None:
    found = fitted(judged)
    assert all(weight >= 0 for weight in found.weights)
    sure = [found.probability(tokens(p), name) for name in ("a", "?") for p in (0.01, 0.5, 0.9, 0.9999)]
    assert all(0 < p < 1 for p in sure if p is not None)
    for part in (sure[:4], sure[4:]):
        assert all(low <= high for low, high in pairwise(p for p in part if p is not None))


@settings(deadline=None, max_examples=30)
@given(judgements)
def test_a_fit_is_read_from_its_json_as_it_was(judged: list[Judged]) -> None:
    found = fitted(judged)
    assert Logistic.model_validate_json(found.model_dump_json()) == found


def test_without_rows_the_probability_is_nearly_the_product_of_the_tokens() -> None:
    found = fitted([], features=(0,))
    for share in (0.1, 0.5, 0.9):
        assert found.probability(tokens(share)) == pytest.approx(share, abs=0.03)


def test_whole_answers_keep_the_order_of_the_products() -> None:
    rows = answers(60)
    found = fitted_calibration(rows, [0.5] * 60).answer
    assert found.weights[1:3] == (0.0, 0.0)
    assert found.weights[0] > 0


def test_a_word_that_the_tagger_labels_otherwise_makes_an_answer_less_sure() -> None:
    none, sure, unsure = (tokens(0.9).model_copy(update={"tagged": tagged}) for tagged in (None, -0.01, -3.0))
    for logistic in (Logistic(), fitted([])):
        low, middle, high = (logistic.probability(one) or 0.0 for one in (unsure, none, sure))
        assert low < middle < high


def test_what_the_tagger_says_counts_as_much_as_held_out_rows_show() -> None:
    drawn = random.Random(0)
    rows = [
        Judged(tokens(0.9).model_copy(update={"tagged": -3.0 if right == wise else -0.01}), "", right)
        for right, wise in ((drawn.random() < 0.5, drawn.random() < 0.5) for _ in range(200))
    ]
    assert fitted(rows).weights[3] < 0.15


def test_a_field_with_more_errors_is_less_sure() -> None:
    judged = [Judged(tokens(0.9), "good", True)] * 40 + [Judged(tokens(0.9), "bad", False)] * 40
    found = fitted(judged)
    good, bad = (found.probability(tokens(0.9), name) for name in ("good", "bad"))
    assert good is not None
    assert bad is not None
    assert good > 0.8 > 0.3 > bad


@pytest.mark.parametrize("size", [50, 100, 300])
def test_overconfident_products_are_corrected(size: int) -> None:
    """Tokens say 1 - (1 - p)^3, answers are right with p: the fit is nearer than the products."""
    drawn = random.Random(size)
    shares = [drawn.uniform(0.2, 0.9) for _ in range(size)]
    rows = [Judged(tokens(1 - (1 - share) ** 3), "", drawn.random() < share) for share in shares]
    found = fitted(rows, features=(0,))
    probabilities = [found.probability(row.tokens) or 0.0 for row in rows]
    error = sum(abs(p - share) for p, share in zip(probabilities, shares, strict=True)) / size
    naive = sum(1 - (1 - share) ** 3 - share for share in shares) / size
    assert error < naive / 2


def test_the_answers_of_a_document_are_in_one_fold() -> None:
    rows = answers(60, documents=12)
    fits = cross_fitted(rows)
    by_document: dict[str | None, set[str]] = {}
    for row, fit in zip(rows, fits, strict=True):
        by_document.setdefault(row.document, set()).add(fit.model_dump_json())
    assert all(len(fits) == 1 for fits in by_document.values())
    assert len({fit.model_dump_json() for fit in fits}) > 1


def test_an_answer_does_not_decide_its_own_probability() -> None:
    rows = answers(40)
    fit = cross_fitted(rows)[7]
    changed = [*rows[:7], JudgedAnswer(rows[7].tokens, not rows[7].is_right), *rows[8:]]
    everything = fitted_calibration(rows, [0.5] * 40), fitted_calibration(changed, [0.5] * 40)
    assert everything[0].answer != everything[1].answer
    assert fit.rows < 40


def test_the_fit_keeps_the_held_out_probability_of_each_row() -> None:
    rows = answers(30)
    found = fitted_calibration(rows, [0.25] * 30)
    assert found.held_out == tuple((0.25, row.is_right) for row in rows)
    assert found.rows == 30
    assert Calibration.model_validate_json(found.model_dump_json()) == found


@pytest.mark.parametrize("is_right", [True, False])
def test_answers_of_one_kind_only_are_fitted_too(is_right: bool) -> None:
    rows = [JudgedAnswer(tokens(0.9), is_right) for _ in range(25)]
    probability = cross_fitted(rows)[0].answer.probability(tokens(0.9))
    assert probability is not None
    assert (probability > 0.8) is is_right
    assert 0 < probability < 1
