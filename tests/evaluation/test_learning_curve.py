"""learning_curve(): one model per training-set size, all scored on the same held-out rows."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, ClassVar

import pytest

from llama_index_finetune_structured import FinetuneDataset, learning_curve
from llama_index_finetune_structured.errors import ConfigurationError, DatasetError
from llama_index_finetune_structured.evaluation import LearningCurve

from .systems import Card, ScriptedLLM, card, example

TRAIN = [example(f"How do I call train{number}?", card(f"train{number}")) for number in range(32)]
HELD_OUT = [example(f"How do I call held{number:02}?", card(f"held{number:02}")) for number in range(32)]


class Learner:
    """An engine whose model gives one held-out answer right per training row, up to ``most``."""

    trained: ClassVar[list[list[str]]] = []

    def __init__(self, rows: FinetuneDataset, most: int = 32) -> None:
        self.rows, self.most, self.done = rows, most, False

    def finetune(self) -> None:
        Learner.trained.append([row.id for row in self.rows])
        self.done = True

    def get_finetuned_model(self) -> ScriptedLLM:
        assert self.done
        known = min(len(self.rows), self.most)
        answers: dict[str, Any] = {f"held{number:02}": card(f"held{number:02}") for number in range(known)}
        answers |= {f"held{number:02}": "no idea" for number in range(known, 32)}
        return ScriptedLLM(script=answers, name=f"right-{known}")


@pytest.fixture(autouse=True)
def forget() -> None:
    Learner.trained = []


def curve(factory: Any = Learner, **kwargs: Any) -> LearningCurve:
    return learning_curve(factory, TRAIN, HELD_OUT, output_cls=Card, show_progress=False, **kwargs)


def test_rising_curve_says_that_more_rows_are_worth_it() -> None:
    found = curve()
    assert found.sizes == (4, 8, 16, 32)
    assert [point.rate for _, point in found.points] == pytest.approx([4 / 32, 8 / 32, 16 / 32, 1.0])
    assert found.last_step.difference == pytest.approx(0.5)
    assert found.verdict().startswith("From 16 to 32 rows: +50 points (95% interval +")
    assert "more rows of this kind are worth it" in found.verdict()


def test_flat_curve_says_that_more_rows_may_not_help() -> None:
    found = curve(lambda rows: Learner(rows, most=8), sizes=[8, 32])
    assert found.last_step.difference == 0
    assert "No clear gain" in found.verdict()
    assert "32 held-out rows" in found.verdict()


def test_falling_curve_says_that_more_rows_made_it_worse() -> None:
    found = curve(lambda rows: Learner(rows, most=2 if len(rows) > 20 else 20), sizes=[20, 30])
    assert "made it worse" in found.verdict()


def test_larger_part_holds_the_smaller_ones_whatever_the_order_of_rows() -> None:
    curve()
    forward, Learner.trained = Learner.trained, []
    learning_curve(Learner, TRAIN[::-1], HELD_OUT, output_cls=Card, show_progress=False)
    assert forward == Learner.trained
    for smaller, larger in itertools.pairwise(forward):
        assert larger[: len(smaller)] == smaller
    curve(seed=1)
    assert Learner.trained[4] != forward[0]


@pytest.mark.parametrize("sizes", [[], [5], [5, 5], [0, 5], [5, 33]])
def test_sizes_out_of_range_are_refused_before_anything_is_trained(sizes: list[int]) -> None:
    with pytest.raises(ConfigurationError, match="two different numbers from 1 to 32"):
        curve(sizes=sizes)
    assert not Learner.trained


def test_unknown_metric_and_empty_held_out_rows_are_refused_before_anything_is_trained() -> None:
    with pytest.raises(ConfigurationError, match=r"no metric 'f1'; there are: .*fields\.function"):
        curve(metric="f1")
    with pytest.raises(DatasetError, match="empty"):
        learning_curve(Learner, TRAIN, [], show_progress=False)
    assert not Learner.trained


def test_answers_kept_in_the_cache_are_not_asked_again(tmp_path: Path) -> None:
    first = curve(cache_dir=tmp_path)

    class Silent(Learner):
        def get_finetuned_model(self) -> ScriptedLLM:
            model = super().get_finetuned_model()
            model.script = {key: RuntimeError("asked again") for key in model.script}
            return model

    assert curve(Silent, cache_dir=tmp_path).points == first.points


def test_curve_is_shown_as_table_and_picture_and_kept_as_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = curve(metric="fields.function")
    found.print()
    shown = capsys.readouterr().out
    assert "32 rows" in shown
    assert "worth it" in shown
    picture = found.to_svg(tmp_path / "curve.svg").read_text()
    assert "4 rows 12%" in picture
    assert "fields.function by rows trained on" in picture
    assert LearningCurve.model_validate_json(found.model_dump_json()) == found
