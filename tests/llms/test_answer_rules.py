"""A rule that a user states is checked on labels and answers, lowers what is believed of them, and hands them over."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.prompts import PromptTemplate
from pydantic import BaseModel, Field

from llama_index_finetune_structured import (
    Cascade,
    ConfigurationError,
    FinetuneDataset,
    LoraLLM,
    answer_rules,
    check,
    compare,
    hosted_llm,
    trust_of,
)
from llama_index_finetune_structured.stated_rules import broken_rules
from llama_index_finetune_structured.trust.answer_trust import LogProbability, Trust
from llama_index_finetune_structured.trust.calibration import PROBLEMS, Calibration, Judged, fitted_answers
from llama_index_finetune_structured.trust.cross_fitting import JudgedAnswer, fitted_calibration
from tests.fakes.openai_server import OpenAIServer
from tests.llms.structured_events import StructuredEvents


def _in_lane_five(sign: Any) -> list[str] | None:
    return None if sign.lane == 5 else [f"lane {sign.lane} has no signs"]


@answer_rules(_in_lane_five)
class Sign(BaseModel):
    """A road sign."""

    stop: bool
    lane: int = Field(ge=0, le=9)


class Road(BaseModel):
    """The signs of a road."""

    signs: list[Sign]


PROMPT = PromptTemplate("Which sign is it?")
ALWAYS = 1e-9  # a threshold that every answer reaches
BROKEN = "lane 3 has no signs"


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    with OpenAIServer(answer_chat=lambda _: json.dumps({"stop": True, "lane": 5})) as running:
        yield running


@pytest.fixture(scope="module")
def student(tiny_llama: Path) -> LoraLLM:
    return LoraLLM(base_model=str(tiny_llama), max_new_tokens=60)


def test_rules_of_objects_inside_an_answer_and_of_base_classes_count() -> None:
    def stops(sign: Any) -> Any:
        return None if sign.stop else "no stop"

    @answer_rules(stops)
    class Stop(Sign): ...

    assert broken_rules(Road(signs=[Sign(stop=True, lane=5), Sign(stop=True, lane=3)])) == [
        f"signs.1: {BROKEN}"
    ]
    assert broken_rules(Stop(stop=False, lane=3)) == [BROKEN, "no stop"]


def test_a_rule_that_raises_or_returns_something_else_is_a_broken_one() -> None:
    def raises(_: Any) -> list[str]:
        raise KeyError("lane")

    def counts(_: Any) -> Any:
        return 3

    @answer_rules(raises, counts)
    class Odd(BaseModel): ...

    assert broken_rules(Odd()) == [
        "the rule raises raised KeyError: 'lane'",
        "the rule counts returned 3, expected a list of texts",
    ]
    wrong: Any = "lane == 7"
    with pytest.raises(ConfigurationError, match="expected functions"):
        answer_rules(wrong)


def test_labels_that_break_a_rule_are_listed_before_training(tiny_llama: Path) -> None:
    pairs = [("left", Sign(stop=True, lane=5)), ("right", Sign(stop=True, lane=3))]
    data = FinetuneDataset.from_pairs(pairs, output_cls=Sign)
    report = check(data, base_model=tiny_llama, output_cls=Sign)
    assert [(found.code, found.line, found.message) for found in report.problems] == [
        ("rule_broken", 2, BROKEN)
    ]
    assert report.ok, "the document itself may break it"


def test_a_served_answer_tells_the_rules_that_it_breaks_and_is_less_probable(
    student: LoraLLM, structured_events: StructuredEvents
) -> None:
    kept = student.structured_predict(Road, PROMPT)
    without = trust_of(kept)
    assert isinstance(kept, Road)

    @answer_rules(lambda _: ["never right"])
    class Sign2(Sign): ...

    answer = student.structured_predict(Sign2, PROMPT)
    trust = trust_of(answer)
    assert "never right" in trust.problems
    assert trust.probability is not None
    bare = trust.model_copy(update={"problems": ()})
    assert trust.probability < (Calibration().applied(bare).probability or 0)
    assert structured_events.problems[-1] == trust.problems
    assert without.problems == tuple(broken_rules(kept))


def test_a_cascade_hands_over_an_answer_that_breaks_a_rule(student: LoraLLM, server: OpenAIServer) -> None:
    teacher: Any = hosted_llm(
        "big-teacher",
        api_base=server.base,
        context_window=9000,
        api_key=server.key,
        transport="json_schema",
        max_retries=0,
    )
    own = student.structured_predict(Sign, PROMPT)
    assert trust_of(own).problems, "the tiny model's lane is another one"
    answer = Cascade(student, teacher, threshold=ALWAYS).structured_predict(Sign, PROMPT)
    assert answer == Sign(stop=True, lane=5)
    assert (trust_of(answer).sure, trust_of(answer).problems) == (True, ())


def test_the_scorecard_counts_broken_rules_and_how_many_of_them_are_wrong() -> None:
    data = FinetuneDataset.from_pairs([("left", Sign(stop=True, lane=5))], output_cls=Sign)
    systems = {"right": lambda _: {"stop": True, "lane": 5}, "wrong": lambda _: {"stop": True, "lane": 3}}
    card = compare(systems, data, output_cls=Sign, show_progress=False)
    assert card.rows[0].answers["wrong"].problems == (BROKEN,)
    assert (card.systems["wrong"].with_problems, card.systems["wrong"].wrong_with_problems) == (1, 1)
    assert card.problems() == [
        "wrong: 1 of 1 answers break a rule or have a value with two meanings; 1 of them are not exact"
    ]


def _judged(draw: random.Random, *, is_right: bool, has_problems: bool) -> Judged:
    logarithm = math.log(min(0.99, max(0.01, draw.gauss(0.8 if is_right else 0.7, 0.15))))
    tokens = LogProbability(total=logarithm, least=logarithm, unmasked=logarithm)
    return Judged(tokens, PROBLEMS if has_problems else "", is_right)


def test_the_calibration_learns_how_much_a_broken_rule_tells() -> None:
    """Of 60 answers, 25 of 34 wrong ones break a rule, as of invoices; then as many right ones as wrong ones do."""
    draw = random.Random(0)
    wrong = [_judged(draw, is_right=False, has_problems=n < 25) for n in range(34)]
    telling = fitted_answers([*wrong, *(_judged(draw, is_right=True, has_problems=False) for _ in range(26))])
    idle = fitted_answers([*wrong, *(_judged(draw, is_right=True, has_problems=n < 25) for n in range(34))])
    assert telling.offsets[PROBLEMS] < -2 < idle.offsets[PROBLEMS] <= 0
    tokens = LogProbability(total=-0.1, least=-0.1, unmasked=-0.1)
    assert (telling.probability(tokens, PROBLEMS) or 1) < (telling.probability(tokens) or 0) / 2


def test_held_out_answers_with_problems_are_below_every_threshold() -> None:
    draw = random.Random(0)
    answers = [
        JudgedAnswer(
            _judged(draw, is_right=n % 3 > 0, has_problems=False).tokens, n % 3 > 0, has_problems=n < 5
        )
        for n in range(20)
    ]
    held_out = fitted_calibration(answers, [0.9] * 20).held_out
    assert [probability for probability, _ in held_out] == [0.0] * 5 + [0.9] * 15


def test_problems_are_kept_in_the_json_of_a_trust() -> None:
    trust = Trust(problems=(BROKEN,))
    assert Trust.model_validate_json(trust.model_dump_json()) == trust
