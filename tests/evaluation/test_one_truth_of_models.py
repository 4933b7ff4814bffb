"""Real generations of a LoraLLM: eval, compare, structured_predict and query engines give the same answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import SummaryIndex
from pydantic import BaseModel
from typer.testing import CliRunner

from llama_index_finetune_structured import (
    DocumentText,
    Example,
    FinetuneDataset,
    LoraLLM,
    Scorecard,
    ServingRecipe,
    StructuredAnswerError,
    capture,
    compare,
    label_documents,
)
from llama_index_finetune_structured.answer_values import answer_value
from llama_index_finetune_structured.capture import read_examples
from llama_index_finetune_structured.cli import app
from llama_index_finetune_structured.evaluation.score.metrics import ScoredAnswer
from llama_index_finetune_structured.json_schema import without_titles
from llama_index_finetune_structured.local.schema.bounds import AnswerBounds, schema_key
from tests import random_adapters
from tests.evaluation.answer_kinds import KINDS, Aliased, Raising, Twice

_NO_ANSWER = object()


@dataclass(frozen=True)
class Model:
    """A model, the rows that it is asked, and what ``structured_predict`` said to each, also as a capture."""

    adapter: Path
    llm: LoraLLM
    rows: FinetuneDataset
    predicted: list[Any]
    captured: Path


def _classes() -> list[type[BaseModel]]:
    return [cls for cls, *_ in KINDS]


def _row(number: int, cls: type[BaseModel], gold: str) -> Example:
    document = DocumentText(f"{number}.txt", f"Document {number}.\n{gold}")
    return label_documents([document], cls, labels={document.name: json.loads(gold)}).data[0]


@pytest.fixture(scope="module")
def model(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("one-truth")
    rows = FinetuneDataset([_row(n, cls, valid[0]) for n, (cls, valid, _) in enumerate(KINDS)])
    adapter = random_adapters.save(
        tiny_llama,
        folder / "adapter",
        seed=1,
        bounds=AnswerBounds(default_items=2, default_characters=24),
        schemas=tuple(without_titles(row.answer_schema or {}) for row in rows),
        answer_classes={schema_key(row.answer_schema or {}): row.answer_class for row in rows},
        longest_answer_tokens=60,
    )
    rows.save(folder / "rows.jsonl")
    llm = LoraLLM.from_adapter(adapter)
    with capture(folder / "captured.jsonl"):
        predicted = asyncio.run(_predicted(llm, rows))
    return Model(adapter, llm, rows, predicted, folder / "captured.jsonl")


async def _predicted(llm: LoraLLM, rows: FinetuneDataset) -> list[Any]:
    """The JSON value of each object; concurrent calls share batches."""
    return await asyncio.gather(*map(partial(_prediction, llm), _classes(), rows))


async def _prediction(llm: LoraLLM, cls: type[BaseModel], row: Example) -> Any:
    try:
        found = await llm.astructured_predict(cls, ServingRecipe.of([row]).prompt(), context_str=_text(row))
    except StructuredAnswerError:
        return _NO_ANSWER
    assert isinstance(found, cls)
    return answer_value(found)


def _text(row: Example) -> str:
    return str(row.messages[-1].content).partition("\n\n")[2]


def _same(model: Model, answers: Iterator[ScoredAnswer]) -> None:
    for cls, expected, answer in zip(_classes(), model.predicted, answers, strict=True):
        assert answer.valid == (expected is not _NO_ANSWER), (cls, answer.text, answer.error)
        assert answer.value == (None if expected is _NO_ANSWER else expected), cls
        assert not answer.call_failed


def test_the_model_gives_valid_answers_to_many_classes_and_invalid_ones_to_others(model: Model) -> None:
    valid = [
        cls.__name__
        for cls, value in zip(_classes(), model.predicted, strict=True)
        if value is not _NO_ANSWER
    ]
    assert len(KINDS) >= 40
    assert 25 <= len(valid) < len(KINDS), valid


def test_compare_says_what_structured_predict_says(model: Model) -> None:
    card = compare({"tuned": model.llm}, model.rows, show_progress=False)
    _same(model, (row.answers["tuned"] for row in card.rows))


def _evaluated(model: Model, data: Path, output: Path) -> Scorecard:
    command = ["eval", str(model.adapter), str(data), "--no-base", "--output", str(output)]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return Scorecard.from_json(output / "scorecard.json")


def test_eval_says_what_structured_predict_says(model: Model, tmp_path: Path) -> None:
    card = _evaluated(model, model.captured.with_name("rows.jsonl"), tmp_path / "out")
    _same(model, (row.answers["tuned"] for row in card.rows))


def test_eval_on_the_models_own_captured_answers_finds_all_of_them_exact(
    model: Model, tmp_path: Path
) -> None:
    valid = [row for row, value in zip(model.rows, model.predicted, strict=True) if value is not _NO_ANSWER]
    captured = list(read_examples(model.captured))
    assert {row.answer_class for row in captured} == {row.answer_class for row in valid}
    card = _evaluated(model, model.captured, tmp_path / "out")
    assert not card.left_out
    wrong = [row.answers["tuned"] for row in card.rows if not row.answers["tuned"].exact]
    assert wrong == []


async def _by_other_ways(model: Model, cls: type[BaseModel], row: Example) -> list[Any]:
    """What a structured LLM and a query engine give."""
    prompt = ServingRecipe.of([row]).prompt()
    engine = SummaryIndex(DocumentText(str(row.document_id), _text(row)).nodes()).as_query_engine(
        llm=model.llm, text_qa_template=prompt, output_cls=cls
    )
    asked = prompt.format_messages(context_str=_text(row))
    chats = model.llm.as_structured_llm(cls).achat(asked), engine.aquery("?")
    chat, answer = await asyncio.gather(*chats, return_exceptions=True)
    if isinstance(chat, Exception) and not isinstance(chat, StructuredAnswerError):
        raise chat
    # LlamaIndex's synthesizers log what an LLM raises, and give no object.
    found = [getattr(chat, "raw", None), vars(answer).get("response")]
    return [answer_value(each) if isinstance(each, BaseModel) else _NO_ANSWER for each in found]


def test_structured_llms_and_query_engines_say_what_structured_predict_says(model: Model) -> None:
    async def every() -> list[list[Any]]:
        return await asyncio.gather(*map(partial(_by_other_ways, model), _classes(), model.rows))

    others = set[type[BaseModel]]()
    for cls, expected, (chat, answer) in zip(_classes(), model.predicted, asyncio.run(every()), strict=True):
        assert chat == expected, cls
        others |= {cls} if answer != expected else set()
    # LlamaIndex's synthesizers read the object again, from JSON with the names of its fields.
    read_otherwise: set[type[BaseModel]] = {Twice, Raising, Aliased}
    assert others <= read_otherwise


def test_it_is_the_same_without_asyncio(model: Model) -> None:
    for cls, row, expected in list(zip(_classes(), model.rows, model.predicted, strict=True))[:4]:
        found = model.llm.structured_predict(cls, ServingRecipe.of([row]).prompt(), context_str=_text(row))
        assert answer_value(found) == expected
