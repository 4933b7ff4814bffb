"""An adapter names the class of its answers, which is used where it is imported, and never imported by itself."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from llama_index_finetune_structured import ConfigurationError, FinetuneDataset, LoraLLM, compare, load_schema
from llama_index_finetune_structured.answer_classes import class_of, class_path, is_importable
from llama_index_finetune_structured.evaluation.run.answer_classes import with_classes
from llama_index_finetune_structured.local.schema.bounds import schema_key
from tests import random_adapters
from tests.dataset.invoices import Invoice

PATH = "tests.dataset.invoices:Invoice"
KEY = schema_key(Invoice.model_json_schema())
ROWS = FinetuneDataset.from_pairs([("q", {"number": "R-1", "total": "1.50"})], output_cls=Invoice)


def _llm(base: Path, classes: dict[str, str]) -> LoraLLM:
    return LoraLLM(base_model=base, answer_classes=classes)


def test_the_card_tells_the_class_to_the_llm(tiny_llama: Path, tmp_path: Path) -> None:
    llm = LoraLLM.from_adapter(
        random_adapters.save(tiny_llama, tmp_path / "adapter", seed=1, answer_classes={KEY: PATH})
    )
    assert llm.answer_classes == {KEY: PATH}
    assert llm.trained_class() is Invoice


@pytest.mark.parametrize(
    ("classes", "error"),
    [
        ({}, "have no class on record; pass the class itself"),
        ({KEY: PATH, "other": "a:B"}, "were trained for a:B, tests.dataset.invoices:Invoice"),
        ({KEY: "not_there.models:Bill"}, "are of not_there.models:Bill, which is not imported: import not_there"),
        ({KEY: "models.py:Bill"}, "is not loaded: call load_schema"),
        ({"other": PATH}, "Invoice, which has another JSON schema now: train again, or restore it"),
    ],
)  # fmt: skip
def test_a_class_that_is_not_there_is_named_with_what_to_do(
    tiny_llama: Path, classes: dict[str, str], error: str
) -> None:
    with pytest.raises(ConfigurationError, match=error):
        _llm(tiny_llama, classes).trained_class()


MODELS = """
from pydantic import BaseModel
class Bill(BaseModel):
    number: str
    total: float
"""


def test_a_class_of_a_file_is_named_by_the_file_and_found_once_it_is_loaded(
    tiny_llama: Path, tmp_path: Path
) -> None:
    (tmp_path / "bills.py").write_text(MODELS)
    bill = load_schema(f"{tmp_path / 'bills.py'}:Bill")
    assert class_path(bill) == "bills.py:Bill"
    key = schema_key(bill.model_json_schema())
    assert _llm(tiny_llama, {key: "bills.py:Bill"}).trained_class() is bill
    [row] = FinetuneDataset.from_pairs([("q", {"number": "1", "total": 1.5})], output_cls=bill)
    assert row.answer_class == "bills.py:Bill"
    assert class_of(row) is bill


def test_names_that_no_other_process_can_import_are_not_recorded() -> None:
    class Local(BaseModel):
        name: str

    assert not any(
        map(is_importable, (class_path(Local), "__main__:Bill", "_finetune_schema_1:Bill", "", "a:b c"))
    )
    assert all(map(is_importable, (PATH, "models.py:Bill", "bill-models.py:Bill")))


def test_compare_judges_rows_without_a_class_by_that_of_the_adapter(tiny_llama: Path) -> None:
    nameless = [row.model_copy(update={"answer_class": None}) for row in ROWS]
    [row] = with_classes(nameless, [_llm(tiny_llama, {KEY: PATH})])
    assert class_of(row) is Invoice
    for classes in ({}, {KEY: "not_there:Bill"}, {"other": PATH}):
        [row] = with_classes(nameless, [_llm(tiny_llama, classes)])
        assert class_of(row) is None


def test_a_warning_names_the_class_where_the_json_schema_judges_in_its_place(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def euros(_: Any) -> dict[str, Any]:
        return {"number": "R-1", "total": "1.50", "currency": "€"}

    with caplog.at_level(logging.WARNING):
        assert compare({"euros": euros}, ROWS, show_progress=False).systems["euros"].exact_match == 1
        assert caplog.text == ""
        moved = [row.model_copy(update={"answer_class": "not_there:Invoice"}) for row in ROWS]
        assert compare({"euros": euros}, moved, show_progress=False).systems["euros"].exact_match == 0
    assert (
        "1 examples are judged by their JSON schema alone: not_there:Invoice is not imported" in caplog.text
    )
