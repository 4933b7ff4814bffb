"""The schema is said in prompts as in training: as JSON schema, as types, or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from llama_index.core.llms import ChatMessage
from pydantic import BaseModel

from llama_index_finetune_structured import (
    FinetuneDataset,
    LoraFinetuneEngine,
    LoraLLM,
    LoraSettings,
    check,
    served_llm,
)
from llama_index_finetune_structured.errors import ConfigurationError
from llama_index_finetune_structured.local.model.adapter import read_card
from llama_index_finetune_structured.local.model.prompts import SchemaPrompt, prompt_form_of
from tests.exporting import Colour, colours, save_base
from tests.fakes.openai_server import OpenAIServer

SAID = {
    "json": 'fits this JSON schema, and with nothing else:\n{"properties":{"name":{"type":"string"}',
    "compact": "of this type, and with nothing else:\n{name: string, warm: boolean}",
    "none": "You know colours.",
}
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base("llama", tmp_path_factory.mktemp("base"))


@pytest.mark.parametrize("schema_prompt", ["json", "compact", "none"])
def test_serving_says_the_schema_as_training_did(
    schema_prompt: SchemaPrompt, base: Path, tmp_path: Path
) -> None:
    settings = LoraSettings(schema_prompt=schema_prompt, rank=2, epochs=1)
    engine = LoraFinetuneEngine(colours(), base_model=base, output_dir=tmp_path / "run", config=settings)
    engine.finetune()
    report = check(colours(), base_model=base, schema_prompt=schema_prompt)
    assert report.span is not None
    trained = report.span.prompt_text
    assert SAID[schema_prompt] in trained.replace("Ġ", " ").replace("Ċ", "\n")
    assert ("name" in trained) is (schema_prompt != "none")

    asked = [
        ChatMessage(role="system", content="You know colours."),
        ChatMessage(content="Describe colour 0."),
    ]
    prompt = [
        token
        for token, is_trained in zip(report.span.ids, report.span.trained, strict=True)
        if not is_trained
    ]
    for llm in (engine.get_finetuned_model(), LoraLLM(adapter=engine.adapter, base_model=str(base))):
        assert llm.prompt_token_ids(asked, Colour) == prompt
    assert isinstance(engine.get_finetuned_model().as_structured_llm(Colour).chat(asked).raw, Colour)

    with OpenAIServer(key="a key of letters") as server:
        served = served_llm(engine.adapter, model="tuned", api_base=server.base, api_key=server.key)
        served.chat(asked, response_format=_format())
        system = server.calls("POST", CHAT)[-1].json()["messages"][0]["content"]
    assert system.startswith("You know colours.")
    assert SAID[schema_prompt] in system
    assert read_card(engine.adapter).schema_prompt == schema_prompt


class Smell(BaseModel):
    strength: int


@pytest.mark.parametrize(
    ("rows", "others", "form"), [(100, 0, "none"), (99, 0, "compact"), (150, 1, "compact"), (0, 0, "compact")]
)
def test_prompts_do_not_repeat_the_one_schema_of_many_rows(
    base: Path, rows: int, others: int, form: SchemaPrompt
) -> None:
    examples = [*colours(rows)] if rows else []
    if others:
        examples += FinetuneDataset.from_pairs([(f"smell {n}", Smell(strength=n)) for n in range(others)])
    assert prompt_form_of(examples).schema_prompt == form
    if examples:
        assert LoraFinetuneEngine(examples, base_model=base)._form.schema_prompt == form
        span = check(examples, base_model=base).span
        assert span is not None
        assert ("of this type" in span.prompt_text.replace("Ġ", " ")) is (form == "compact")


def test_an_adapter_that_knows_its_schema_is_told_another_one(base: Path, tmp_path: Path) -> None:
    settings = LoraSettings(schema_prompt="none", rank=2, epochs=1)
    engine = LoraFinetuneEngine(colours(), base_model=base, output_dir=tmp_path / "run", config=settings)
    engine.finetune()
    llm = engine.get_finetuned_model()
    question = [ChatMessage(content="Describe colour 0.")]
    twice = [ChatMessage(content="Describe colour 0.\nDescribe colour 0.")]
    assert llm.prompt_token_ids(question, Colour) == llm.prompt_token_ids(twice)
    assert len(llm.prompt_token_ids(question, Smell)) > len(llm.prompt_token_ids(twice))


def test_a_shorter_schema_leaves_more_of_the_window_to_texts(base: Path) -> None:
    windows = [LoraLLM(base_model=str(base), schema_prompt=form) for form in ("json", "compact", "none")]
    rooms = [llm.metadata_for(Colour).context_window for llm in windows]
    assert rooms[0] < rooms[1] < rooms[2]


def test_an_unknown_form_is_refused(base: Path) -> None:
    with pytest.raises(ValueError, match="schema_prompt"):
        LoraSettings(schema_prompt="yaml")
    with pytest.raises((ConfigurationError, ValueError), match="schema_prompt"):
        LoraLLM(base_model=str(base), schema_prompt="yaml")


def _format() -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "Colour", "schema": Colour.model_json_schema()}}
