"""Texts of another kind: how often a system says so, rightly and wrongly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from llama_index.core import PromptTemplate
from pydantic import BaseModel, RootModel

from llama_index_finetune_structured import (
    Example,
    FinetuneDataset,
    LoraFinetuneEngine,
    LoraLLM,
    LoraSettings,
    Scorecard,
    check,
    compare,
)


class Bill(BaseModel):
    number: str


class MaybeBill(RootModel[Bill | None]):
    """A bill, or null for another kind of text."""


class EmptyBill(BaseModel):
    number: str | None = None


NONE = {MaybeBill: "null", EmptyBill: '{"number":null}'}


def _rows(cls: type[BaseModel], count: int = 8) -> FinetuneDataset:
    """Every second text is no bill."""
    pairs = [(f"Text {n}", NONE[cls] if n % 2 else f'{{"number":"{n}"}}') for n in range(count)]
    return FinetuneDataset.from_pairs(pairs, output_cls=cls)


@pytest.mark.parametrize("cls", [MaybeBill, EmptyBill])
def test_precision_and_recall_of_none_are_in_the_scorecard_and_its_reports(
    cls: type[BaseModel], tmp_path: Path
) -> None:
    def refuses_from_2_to_5(row: Example) -> str:
        number = int((row.query or "").split()[-1])
        return NONE[cls] if 2 <= number <= 5 else '{"number":"0"}'

    systems: dict[str, Any] = {
        "never": lambda row: '{"number":"0"}',
        "some": refuses_from_2_to_5,
        "fails": lambda row: "no JSON",
    }
    card = compare(systems, _rows(cls), show_progress=False)
    found = {name: (score.gold, score.said, score.right) for name, score in card.refusals.items()}
    assert found == {"never": (4, 0, 0), "some": (4, 4, 2), "fails": (4, 0, 0)}
    some = card.refusals["some"]
    assert (some.precision, some.recall, card.refusals["never"].precision) == (0.5, 0.5, None)
    assert "Of 4 texts of another kind it says so for 2, and wrongly for 2 of the 4 others." in card.verdict()
    page = card.to_html(tmp_path / "page.html").read_text()
    assert "“none” recall" in page
    assert Scorecard.from_json(card.to_json(tmp_path / "card.json")).refusals == card.refusals


def test_a_data_set_without_such_rows_has_no_such_figures(tmp_path: Path) -> None:
    rows = FinetuneDataset.from_pairs([("a", {"number": "1"})], output_cls=Bill)
    card = compare({"x": lambda row: '{"number":""}'}, rows, show_progress=False)
    assert card.refusals == {}
    assert "“none”" not in card.to_html(tmp_path / "page.html").read_text()


def test_null_is_trained_written_under_the_grammar_and_served(tiny_llama: Path, tmp_path: Path) -> None:
    rows = _rows(MaybeBill, 2)
    report = check(rows, base_model=tiny_llama)
    assert (report.good, [problem for problem in report.problems if not problem.is_warning]) == (2, [])
    engine = LoraFinetuneEngine(
        FinetuneDataset([rows[1]] * 4),
        base_model=tiny_llama,
        output_dir=tmp_path / "run",
        config=LoraSettings(rank=8, epochs=15, learning_rate=1e-2),
    )
    engine.finetune()
    student = LoraLLM.from_adapter(tmp_path / "run")
    answer = student.structured_predict(MaybeBill, PromptTemplate("Text 1"))
    assert answer == MaybeBill(None)
    card = compare({"student": student}, [rows[1]], show_progress=False)
    assert card.systems["student"].exact_match == 1.0
    assert card.refusals["student"].recall == 1.0
