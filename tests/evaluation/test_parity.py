"""parity() passes forms that answer as the adapter does, and names those that do not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llama_index_finetune_structured import LoraLLM, export_adapter, parity, served_llm
from llama_index_finetune_structured.errors import ConfigurationError, ParityError
from llama_index_finetune_structured.evaluation.export_parity import FormParity, Parity
from llama_index_finetune_structured.local.generate.request import GenerationRequest
from llama_index_finetune_structured.local.model.prompts import render_prompt
from llama_index_finetune_structured.local.schema.bounds import AnswerBounds, schema_key
from tests import exporting
from tests.fakes.openai_server import OpenAIServer

from .systems import DATA, quiet

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
        "1 of 4 answers are not valid: the answer holds no JSON object: 'no json'"
    ) in found.failures


LIMITS = {"nothing may differ": (1.0, 0.0), "usual": (0.98, 0.02), "everything is allowed": (0.0, 1.0)}


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("adapter_valid", [1.0, 0.5, 0.01])
def test_a_form_without_a_valid_answer_passes_no_gate(limits: str, adapter_valid: float) -> None:
    found = _parity(0.0, adapter_valid, *LIMITS[limits])
    assert not found.passed
    assert found.failures[0].startswith("form: 0% of its answers are valid")
    assert found.table().rows[1][-1] == "differs"


@pytest.mark.parametrize("n", [50, 100, 150, 1000])
def test_a_form_that_loses_just_what_it_may_passes(n: int) -> None:
    assert _parity((n - n // 50) / n, 1.0, 0.98, 0.02).failures == []
    assert len(_parity((n - n // 50 - 1) / n, 1.0, 0.98, 0.02).failures) == 1


def test_the_table_names_the_form_that_differs_also_where_names_begin_alike() -> None:
    same, other = (FormParity(valid=v, agreement=1, identical=1, seconds_per_answer=1, n=4) for v in (1, 0.5))
    found = _parity(1.0, 1.0, 0.98, 0.02).model_copy(update={"forms": {"a": same, "a: b": other}})
    assert [row[-1] for row in found.table().rows] == ["", "same", "differs"]


def _parity(valid: float, adapter_valid: float, min_agreement: float, max_valid_loss: float) -> Parity:
    form = FormParity(valid=valid, agreement=float(valid > 0), identical=0, seconds_per_answer=1, n=100)
    return Parity(
        adapter_valid=adapter_valid, forms={"form": form}, min_agreement=min_agreement,
        max_valid_loss=max_valid_loss, answers=quiet({"form": lambda row: row.answer_object()}, DATA),
    )  # fmt: skip


def test_an_adapter_without_a_valid_answer_cannot_be_the_measure(adapter: Path) -> None:
    free = LoraLLM.from_adapter(adapter, constrained=False, max_new_tokens=4)
    with pytest.raises(ConfigurationError, match="none of the adapter's own answers is valid"):
        parity(free, exporting.colours(), {"same": free}, **QUIET)


def test_forms_are_asked_for_by_name(adapter: Path) -> None:
    llm = LoraLLM.from_adapter(adapter)
    for forms in ({}, {"adapter": llm}):
        with pytest.raises(ConfigurationError, match="pass forms by name"):
            parity(llm, exporting.colours(), forms, **QUIET)
