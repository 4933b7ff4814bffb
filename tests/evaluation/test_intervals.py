"""95% intervals cover the truth about 95 times of 100, and the verdict says what they allow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from llama_index_finetune_structured import Scorecard, compare
from llama_index_finetune_structured.errors import ConfigurationError
from llama_index_finetune_structured.evaluation.results import ScoredRow, resamples_of
from llama_index_finetune_structured.evaluation.score.answers import FieldScore
from llama_index_finetune_structured.evaluation.score.metrics import ScoredAnswer

from .systems import card, example

KINDS = {"items": "list"}


def _answer(right: bool, gold: int = 1, found: int = 0) -> ScoredAnswer:
    score = FieldScore(gold=gold, answered=gold, correct=found, wrong=gold - found, right=int(found == gold))
    return ScoredAnswer(valid=True, exact=right, field_score=float(right), fields={"items": score})


def _row(at: int, a: ScoredAnswer, b: ScoredAnswer, document: str | None = None) -> ScoredRow:
    return ScoredRow(
        example_id=str(at), question="", gold=None, document_id=document, answers={"a": a, "b": b}
    )


def _rates(rng: Any, n: int, only_a: float, only_b: float) -> list[ScoredRow]:
    drawn = rng.random(n)
    both = rng.random(n) < 0.7
    rows = []
    for at in range(n):
        a_alone, b_alone = drawn[at] < only_a, only_a <= drawn[at] < only_a + only_b
        same = not (a_alone or b_alone) and both[at]
        rows.append(_row(at, _answer(bool(a_alone or same)), _answer(bool(b_alone or same))))
    return rows


def _lists(rng: Any, n: int, a: float, b: float) -> list[ScoredRow]:
    sizes, ease = rng.integers(0, 7, n), rng.beta(3, 1, n)
    finds = [[int(rng.binomial(k, p * e)) for k, e in zip(sizes, ease, strict=True)] for p in (a, b)]
    answers = [[_answer(False, int(k), f) for k, f in zip(sizes, found, strict=True)] for found in finds]
    return [_row(at, *pair) for at, pair in enumerate(zip(*answers, strict=True))]


def _documents(rng: Any, n: int, a: float, b: float) -> list[ScoredRow]:
    """Documents of four rows that are right or wrong together."""
    rows = []
    for at in range(n // 4):
        drawn = rng.random()
        rows += [_row(4 * at + i, _answer(drawn < a), _answer(drawn < b), f"doc {at}") for i in range(4)]
    return rows


CASES = [
    pytest.param(lambda rng: _rates(rng, 40, 0.4, 0.1), "exact_match", 0.3, id="clear difference of rates"),
    pytest.param(lambda rng: _rates(rng, 40, 0.97, 0.0), "exact_match", 0.97, id="rate near one"),
    pytest.param(lambda rng: _rates(rng, 20, 0.1, 0.05), "exact_match", 0.05, id="few rows"),
    pytest.param(lambda rng: _lists(rng, 40, 0.95, 0.6), "fields.items", 0.2625, id="F1 of lists"),
    pytest.param(lambda rng: _documents(rng, 160, 0.7, 0.4), "exact_match", 0.3, id="rows of one document"),
]


# ordinary run: coverage far off is noticed; slow run: within about two standard errors of 95%
RUNS = [(60, 0.87), pytest.param(1000, 0.937, marks=pytest.mark.slow)]


@pytest.mark.parametrize(("runs", "least"), RUNS)
@pytest.mark.parametrize(("draw", "metric", "truth"), CASES)
def test_intervals_have_their_nominal_coverage(
    draw: Callable[[Any], list[ScoredRow]], metric: str, truth: float, runs: int, least: float
) -> None:
    rng = np.random.default_rng(7)
    covered = 0
    for seed in range(runs):
        found = resamples_of(draw(rng), KINDS, seed).difference("a", "b", metric)
        covered += found.low - 1e-9 <= truth <= found.high + 1e-9
    assert covered / runs >= least


@pytest.mark.parametrize(("runs", "least"), RUNS)
@pytest.mark.parametrize("truth", [0.5, 0.95])
def test_single_rates_have_their_nominal_coverage(truth: float, runs: int, least: float) -> None:
    rng = np.random.default_rng(8)
    covered = 0
    for seed in range(runs):
        rows = [_row(at, _answer(bool(hit)), _answer(False)) for at, hit in enumerate(rng.random(40) < truth)]
        found = resamples_of(rows, KINDS, seed).interval("a", "exact_match")
        covered += found.low <= truth <= found.high
    assert covered / runs >= least


def test_all_right_is_not_taken_for_certainty() -> None:
    rows = [_row(at, _answer(True), _answer(False)) for at in range(40)]
    resamples = resamples_of(rows, KINDS)
    found = resamples.difference("a", "b", "exact_match")
    assert found.difference == 1
    assert 0.8 < found.low < 1 <= found.high + 1e-9
    assert resamples.interval("a", "exact_match").low < 0.97


def test_rows_of_one_document_do_not_count_as_many() -> None:
    rng = np.random.default_rng(1)
    rows = _documents(rng, 80, 0.7, 0.4)
    apart = [row.model_copy(update={"document_id": None}) for row in rows]
    width = [
        (found := resamples_of(some, KINDS).difference("a", "b", "exact_match")).high - found.low
        for some in (rows, apart)
    ]
    assert width[0] > 1.5 * width[1]


def _scorecard(tuned_right: int, teacher_right: int, n: int = 30) -> Scorecard:
    golds = [card(f"f{at}") for at in range(n)]
    data = [example(f"call {at}!", gold) for at, gold in enumerate(golds)]

    def right_in(first: int) -> Any:
        return lambda row: (
            row.answer_object() if int(str(row.query)[5:-1]) < first else card("no", returns="no")
        )

    systems = {"base": lambda _: "", "tuned": right_in(tuned_right), "teacher": right_in(teacher_right)}
    return compare(systems, data, show_progress=False)


def test_verdict_names_gain_interval_and_what_cannot_be_told_apart() -> None:
    verdict = _scorecard(29, 30).verdict()
    assert verdict.startswith("tuned beats base by 98 points (95% interval ")
    assert "does not differ clearly from teacher on these 30 examples" in verdict
    assert "It gives a valid answer in 100% of 30 cases" in verdict
    assert "points behind teacher" in _scorecard(5, 30).verdict()


def test_verdict_of_one_system_compares_with_nothing() -> None:
    data = [example("call f!", card("f"))]
    verdict = compare({"llm": lambda row: row.answer_text()}, data, show_progress=False).verdict()
    assert verdict == "llm gives a valid answer in 100% of 1 case and gets 100% of the fields right."


def test_differences_are_kept_and_others_are_worked_out() -> None:
    scorecard = _scorecard(20, 30)
    kept = scorecard.difference("tuned", "base", "exact_match")
    assert kept in scorecard.differences
    turned = scorecard.difference("base", "tuned", "exact_match")
    assert turned not in scorecard.differences
    assert turned.difference == -kept.difference
    with pytest.raises(ConfigurationError, match="no metric 'speed'; there are: schema_valid"):
        scorecard.difference("tuned", "base", "speed")
    with pytest.raises(ConfigurationError, match="no system 'x'; there are: base, tuned, teacher"):
        scorecard.difference("x", "base")
