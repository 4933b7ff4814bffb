"""parity() passes forms that answer as the adapter does, and names those that do not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llama_index_finetune_structured import LoraLLM, export_adapter, parity, served_llm
from llama_index_finetune_structured.errors import ConfigurationError, ParityError
from llama_index_finetune_structured.local.generate.request import GenerationRequest
from llama_index_finetune_structured.local.model.prompts import render_prompt
from llama_index_finetune_structured.local.schema.bounds import AnswerBounds, schema_key
from tests import exporting
from tests.fakes.openai_server import OpenAIServer

QUIET: dict[str, Any] = {"show_progress": False}


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parity")
    return exporting.train(exporting.save_base("llama", folder / "base"), folder / "run").adapter


class Serving:
    """Answers as a server of a merged folder does: chat template, the request schema's grammar, greedy decoding."""

    def __init__(self, merged: Path) -> None:
        self.model = LoraLLM(base_model=str(merged))._loaded

    def __call__(self, body: dict[str, Any]) -> str:
        schema = body["response_format"]["json_schema"]["schema"]
        request = GenerationRequest(
            prompt=tuple(render_prompt(self.model.tokenizer, body["messages"])),
            max_new_tokens=body["max_tokens"],
            grammar=self.model.grammar(schema, schema_key(schema), AnswerBounds()),
        )
        tokens = self.model.engine.submit(request).result().tokens
        return str(self.model.tokenizer.decode(tokens, skip_special_tokens=True))


@pytest.fixture(scope="module")
def served(adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, OpenAIServer]]:
    merged = export_adapter(adapter, tmp_path_factory.mktemp("m") / "merged", dtype="f32")
    with OpenAIServer(answer_chat=Serving(merged)) as server:
        yield merged, server


def test_merged_and_served_models_answer_as_the_adapter(
    adapter: Path, served: tuple[Path, OpenAIServer], capsys: pytest.CaptureFixture[str]
) -> None:
    merged, server = served
    forms = {
        "merged": LoraLLM.from_merged(merged),
        "served": served_llm(adapter, model="tuned", api_base=server.base, api_key=server.key),
    }
    found = parity(LoraLLM.from_adapter(adapter), exporting.colours(), forms, **QUIET)
    found.require()
    assert (found.adapter_valid, found.passed, found.failures) == (1.0, True, [])
    assert {name: (form.valid, form.agreement, form.identical) for name, form in found.forms.items()} == {
        "merged": (1.0, 1.0, 1.0),
        "served": (1.0, 1.0, 1.0),
    }
    found.print()
    assert "At parity" in capsys.readouterr().out


def test_another_model_fails_the_gate_by_name(adapter: Path) -> None:
    tuned = LoraLLM.from_adapter(adapter)
    base = LoraLLM(base_model=tuned.base_model, bounds=tuned.bounds)
    found = parity(tuned, exporting.colours(), {"wrong weights": base}, **QUIET)
    assert not found.passed
    assert found.forms["wrong weights"].agreement < 0.98
    with pytest.raises(ParityError, match="wrong weights: its fields agree with the adapter's in"):
        found.require()


def test_a_form_that_breaks_its_answers_fails_on_the_rate_of_valid_ones(adapter: Path) -> None:
    answers = iter(["no json", *['{"name":"red","warm":true}'] * 9])
    with OpenAIServer(answer_chat=lambda _: next(answers)) as server:
        broken = served_llm(adapter, model="tuned", api_base=server.base, api_key=server.key, max_retries=0)
        found = parity(LoraLLM.from_adapter(adapter), exporting.colours(), {"served": broken}, **QUIET)
    assert found.forms["served"].valid == 0.75
    assert (
        "served: 75% of its answers are valid, the adapter's 100%; "
        "1 of 4 answers are not valid: the answer holds no JSON value: 'no json'"
    ) in found.failures


def test_an_adapter_without_a_valid_answer_cannot_be_the_measure(adapter: Path) -> None:
    free = LoraLLM.from_adapter(adapter, constrained=False, max_new_tokens=4)
    with pytest.raises(ConfigurationError, match="none of the adapter's own answers is valid"):
        parity(free, exporting.colours(), {"same": free}, **QUIET)


def test_forms_are_asked_for_by_name(adapter: Path) -> None:
    llm = LoraLLM.from_adapter(adapter)
    for forms in ({}, {"adapter": llm}):
        with pytest.raises(ConfigurationError, match="pass forms by name"):
            parity(llm, exporting.colours(), forms, **QUIET)
