"""LoraLLM copies grounded values from the messages of the call, in each of its ways to answer, and says from where."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import PromptTemplate
from llama_index.core.llms import ChatMessage
from llama_index.core.llms import MessageRole as Role
from pydantic import BaseModel, Field

from llama_index_finetune_structured import Evidence, FinetuneDataset, LoraLLM, trust_of
from llama_index_finetune_structured.answer_values import class_schema
from llama_index_finetune_structured.local.generate import decoders
from llama_index_finetune_structured.local.schema.bounds import AnswerBounds, learn_bounds, schema_key


class Paper(BaseModel):
    author: str
    year: int


class Papers(BaseModel):
    papers: list[Paper] = Field(min_length=2)


TEXT = 'Åsa "Ace" Öberg (2019) and Lee\\Li (1998a) agree; Lee\\Li (2019)\ndoes not.'
MESSAGES = [
    ChatMessage(role=Role.SYSTEM, content="You extract what Nobody (1234) wrote."),
    ChatMessage(role=Role.USER, content=TEXT),
]
FORMAT = {"type": "json_schema", "json_schema": {"name": "Papers", "schema": class_schema(Papers)}}


@pytest.fixture(scope="module")
def bounds() -> AnswerBounds:
    rows = [
        (f"Name{n} ({1950 + n}) is right.", Papers(papers=[Paper(author=f"Name{n}", year=1950 + n)] * 2))
        for n in range(30)
    ]
    learned = learn_bounds(FinetuneDataset.from_pairs(rows, output_cls=Papers))
    assert schema_key(class_schema(Papers)) in learned.grounded
    return learned


@pytest.fixture(scope="module")
def llm(tiny_llama: Path, bounds: AnswerBounds) -> LoraLLM:
    return LoraLLM(base_model=str(tiny_llama), max_new_tokens=900, bounds=bounds)


def _evidence(response: Any) -> dict[tuple[str | int, ...], Evidence | None]:
    return {field.path: field.evidence for field in trust_of(response).fields}


def _check(text: str | None, response: Any) -> None:
    papers, found = Papers.model_validate_json(text or "").papers, _evidence(response)
    assert len(found) == 2 * len(papers) > 0
    for n, paper in enumerate(papers):
        for name, value in (("author", paper.author), ("year", str(paper.year))):
            evidence = found["papers", n, name]
            assert evidence is not None
            assert evidence.message == 1
            assert TEXT[evidence.start : evidence.end] == evidence.text == value


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 3}, {"temperature": 2.0, "seed": 4}])
def test_every_value_is_a_part_of_the_messages(llm: LoraLLM, options: dict[str, Any]) -> None:
    options = {**options, "response_format": FORMAT}
    response = llm.chat(MESSAGES, **options)
    _check(response.message.content, response)
    *_, last = llm.stream_chat(MESSAGES, **options)
    _check(last.message.content, last)
    assert last.message.content == response.message.content
    completion = llm.complete(TEXT, **options)
    Papers.model_validate_json(completion.text)
    assert all(evidence is not None and evidence.message == 0 for evidence in _evidence(completion).values())


def test_calls_of_one_batch_copy_each_from_its_own_messages(llm: LoraLLM) -> None:
    texts = [f"Writer{n}x ({1700 + n})" for n in range(6)]

    async def answers() -> list[Papers]:
        calls = (llm.achat([ChatMessage(content=text)], response_format=FORMAT) for text in texts)
        replies = await asyncio.gather(*calls)
        return [Papers.model_validate_json(reply.message.content or "") for reply in replies]

    for n, answer in enumerate(asyncio.run(answers())):
        for paper in answer.papers:
            assert paper.author in texts[n]
            assert str(paper.year) in texts[n]


def test_padded_batches_obey_the_same_rule(
    tiny_llama: Path, bounds: AnswerBounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llama_index_finetune_structured.local.generate import engine

    monkeypatch.setattr(engine, "supports_kv_cache_slots", lambda _model: False)
    llm = LoraLLM(base_model=str(tiny_llama), max_new_tokens=900, bounds=bounds, batch_size=3)
    response = llm.chat(MESSAGES, response_format=FORMAT)
    assert isinstance(llm._loaded.engine._decoder, decoders.PaddedDecoder)
    _check(response.message.content, response)


def test_a_structured_call_and_a_structured_llm_are_grounded(llm: LoraLLM) -> None:
    for answer in (
        llm.structured_predict(Papers, PromptTemplate("{text}"), text=TEXT),
        llm.as_structured_llm(Papers).complete(TEXT).raw,
    ):
        assert isinstance(answer, Papers)
        assert all(paper.author in TEXT and str(paper.year) in TEXT for paper in answer.papers)


def test_the_switch_and_other_schemas_leave_answers_as_they_were(
    llm: LoraLLM, tiny_llama: Path, bounds: AnswerBounds
) -> None:
    off = llm.model_copy(update={"grounded": False})
    without = LoraLLM(
        base_model=str(tiny_llama),
        max_new_tokens=900,
        bounds=bounds.model_copy(update={"grounded": {}}),
    )
    answers = [each.chat(MESSAGES, response_format=FORMAT) for each in (off, without)]
    assert answers[0].message.content == answers[1].message.content
    other = {"type": "json_schema", "json_schema": {"name": "Paper", "schema": class_schema(Paper)}}
    assert "author" in str(llm.chat(MESSAGES, response_format=other).raw["trust"])
    assert "trust" not in llm.chat(MESSAGES, max_new_tokens=5).raw


def test_an_answer_that_was_cut_at_its_limit_still_ends(llm: LoraLLM) -> None:
    for limit in (60, 70, 80):
        response = llm.chat(
            MESSAGES, response_format=FORMAT, max_new_tokens=limit, temperature=2.0, seed=limit
        )
        Papers.model_validate_json(response.message.content or "")
        assert trust_of(response).fields


def test_offsets_are_those_of_the_content_of_messages_with_several_blocks(llm: LoraLLM) -> None:
    message = ChatMessage(
        role=Role.USER, blocks=[{"block_type": "text", "text": t} for t in ("Ada (1843).", "Bo (1912).")]
    )
    response = llm.chat([message], response_format=FORMAT)
    for field in trust_of(response).fields:
        if field.evidence is not None:
            assert field.evidence.text == str(field.value)
            assert str(message.content)[field.evidence.start : field.evidence.end] == field.evidence.text
