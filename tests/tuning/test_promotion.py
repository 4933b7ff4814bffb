"""The test that promotes a version: passed where it is shown not to be worse, and honest where rows are few."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from llama_index_finetune_structured import Example, FinetuneDataset, Scorecard, compare
from llama_index_finetune_structured.tuning.promotion import CANDIDATE, CURRENT, Decision, least_margin

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


def _card(rows: int, current: Callable[[int], bool], candidate: Callable[[int], bool]) -> Scorecard:
    """The card of two systems that are right at some rows."""

    def answers(right: Callable[[int], bool]) -> Callable[[Example], Any]:
        return lambda example: {"n": (n := int(str(example.messages[0].content))) * 2 + (not right(n))}

    data = FinetuneDataset.from_pairs([(str(n), {"n": n * 2}) for n in range(rows)], schema=SCHEMA)
    systems = {CURRENT: answers(current), CANDIDATE: answers(candidate)}
    return compare(systems, data, show_progress=False)


def _most(n: int) -> bool:
    return n % 5 != 0


@pytest.mark.parametrize(
    ("rows", "candidate", "margin", "promotes", "told"),
    [
        (200, _most, 0.02, True, "it is not worse by more than 2.0 points: field score +0.0, 95% interval −"),
        (200, lambda n: True, 0.0, True, "it is better: field score +20.0"),
        (200, lambda n: n % 5 == 0, 0.02, False, "it is worse: field score −60.0"),
        (
            200,
            lambda n: n % 5 != 1,
            0.02,
            False,
            "it could be worse by more than 2.0 points: field score +0.0",
        ),
        (20, _most, 0.02, False, "So few rows cannot tell: equal answers, too, could be "),
        (20, _most, 0.2, True, "it is not worse by more than 20.0 points"),
        (20, lambda n: n > 0 or _most(n), 0.0, False, "it could be worse by more than 0.0 points"),
    ],
    ids=["equal", "better", "worse", "as good on other rows", "few", "few and a wide margin", "few and none"],
)
def test_a_version_is_promoted_where_it_is_shown_not_to_be_worse(
    rows: int, candidate: Callable[[int], bool], margin: float, promotes: bool, told: str
) -> None:
    decision = Decision.of(_card(rows, _most, candidate), margin)
    assert decision.promotes is promotes, decision.reason
    assert told in decision.reason
    assert f"on {rows} held-out rows" in decision.reason


def test_more_held_out_rows_need_a_smaller_margin() -> None:
    margins = [least_margin(_card(rows, _most, _most)) for rows in (10, 40, 160)]
    assert margins == sorted(margins, reverse=True)
    assert margins[-1] < 0.02 < margins[1]


def test_a_model_that_gives_no_answer_is_not_promoted() -> None:
    card = _card(30, _most, _most)

    def fails(_: Example) -> Any:
        raise ConnectionError("refused")

    data = FinetuneDataset.from_pairs([("1", {"n": 2})], schema=SCHEMA)
    silent = compare({CURRENT: lambda e: {"n": 2}, CANDIDATE: fails}, data, show_progress=False)
    assert Decision.of(silent, 1.0) == Decision(False, "candidate gave no answer; call again to score it")
    assert Decision.of(card, 1.0).promotes
