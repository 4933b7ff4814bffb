"""A structured answer is the likeliest one found, in every way of asking."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Literal

import pytest
from llama_index.core import PromptTemplate, SummaryIndex
from llama_index.core.llms import ChatMessage
from llama_index.core.schema import TextNode
from pydantic import BaseModel

from llama_index_finetune_structured import LoraLLM, trust_of
from llama_index_finetune_structured.errors import ConfigurationError
from tests import exporting

PROMPT = PromptTemplate("{thing}")
THINGS = [f"thing {number}" for number in range(16)]


class Shade(BaseModel):
    tone: Literal["beige", "black", "blue", "brown", "buff", "ash"]
    depth: Literal["dark", "deep", "dim", "dull", "light"]


FORM = {"type": "json_schema", "json_schema": {"name": "Shade", "schema": Shade.model_json_schema()}}


@pytest.fixture(scope="module")
def greedy(tiny_llama: Path) -> LoraLLM:
    return LoraLLM(base_model=str(tiny_llama), max_new_tokens=60)


@pytest.fixture(scope="module")
def searching(greedy: LoraLLM) -> LoraLLM:
    return greedy.model_copy(update={"alternatives": 50})


def _answers(llm: LoraLLM, **options: Any) -> list[BaseModel]:
    return [llm.structured_predict(Shade, PROMPT, options, thing=thing) for thing in THINGS]


def test_some_answers_are_not_the_greedy_ones_and_the_keyword_of_a_call_decides(
    greedy: LoraLLM, searching: LoraLLM
) -> None:
    likeliest = _answers(searching)
    assert likeliest != _answers(greedy)
    assert likeliest == _answers(greedy, alternatives=50)
    assert _answers(searching, alternatives=0) == _answers(greedy)


def test_all_ways_of_asking_agree(searching: LoraLLM) -> None:
    likeliest = _answers(searching)

    async def together() -> list[BaseModel]:
        asked = (searching.astructured_predict(Shade, PROMPT, thing=thing) for thing in THINGS)
        return list(await asyncio.gather(*asked))

    assert asyncio.run(together()) == likeliest
    for thing, answer in zip(THINGS, likeliest, strict=True):
        response = searching.chat([ChatMessage(content=thing)], response_format=FORM)
        assert Shade.model_validate_json(response.message.content or "") == answer
        assert {field.value for field in trust_of(response).fields} == set(answer.model_dump().values())
    unsure = searching.model_copy(update={"confidence": False})
    assert _answers(unsure) == likeliest  # how sure they are is not asked, and changes nothing


def test_query_engines_search_too(greedy: LoraLLM, searching: LoraLLM) -> None:
    index = SummaryIndex([TextNode(text="a text")])

    def asked(llm: LoraLLM) -> list[Any]:
        engine = index.as_query_engine(llm=llm, output_cls=Shade)
        return [engine.query(thing).response for thing in THINGS]

    assert asked(searching) != asked(greedy)


def test_streams_say_the_same_answer_and_take_nothing_back(searching: LoraLLM) -> None:
    for thing, answer in zip(THINGS, _answers(searching), strict=True):
        *_, last = searching.stream_structured_predict(Shade, PROMPT, thing=thing)
        assert last == answer
        text = ""
        for response in searching.stream_chat([ChatMessage(content=thing)], response_format=FORM):
            text += response.delta or ""
            assert response.message.content == text
        assert Shade.model_validate_json(text) == answer


def test_adapters_follow_three_beginnings_by_default_and_a_base_alone_none(
    greedy: LoraLLM, tmp_path: Path
) -> None:
    assert greedy.alternatives == 0
    run = exporting.train(exporting.save_base("llama", tmp_path / "base"), tmp_path / "run")
    assert LoraLLM.from_adapter(run.adapter).alternatives == 3
    assert LoraLLM.from_adapter(run.adapter, alternatives=0).alternatives == 0


@pytest.mark.parametrize("wrong", [-1, 1.5, "3"])
def test_a_number_that_is_none_is_refused(greedy: LoraLLM, wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match="alternatives"):
        greedy.chat([ChatMessage(content="x")], alternatives=wrong, response_format=FORM)
