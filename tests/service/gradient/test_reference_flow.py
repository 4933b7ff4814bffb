"""The flow of the reference's notebooks, trained for real: capture, fine-tune at the service, answer a query engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from llama_index.core import SummaryIndex
from llama_index.core.llms import CompletionResponse, CustomLLM, LLMMetadata
from llama_index.core.llms.callbacks import llm_completion_callback
from llama_index.core.schema import TextNode

from llama_index_finetune_structured import (
    FinetuneDataset,
    GradientAIFineTuningHandler,
    GradientBaseModelLLM,
    GradientFinetuneEngine,
)
from tests.exporting import Colour
from tests.service.gradient.conftest import GradientService

ANSWER = Colour(name="red", warm=True)
QUESTIONS = ["Which colour is warm?", "Is red warm?"]


class Teacher(CustomLLM):
    """Gives one answer."""

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(is_chat_model=True, context_window=4096, num_output=64)

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        return CompletionResponse(text=ANSWER.model_dump_json())

    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        raise NotImplementedError


@pytest.fixture(autouse=True)
def _at_the_service(service: GradientService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIENT_API_URL", service.host)
    monkeypatch.setenv("GRADIENT_ACCESS_TOKEN", "none")
    monkeypatch.setenv("GRADIENT_WORKSPACE_ID", "any")
    monkeypatch.setenv("LLAMA_INDEX_FINETUNE_STRUCTURED_RUNS", str(tmp_path / "runs"))


def test_a_model_tuned_at_the_service_answers_a_query_engine(
    service: GradientService, tmp_path: Path
) -> None:
    index = SummaryIndex([TextNode(text="Red is a warm colour.")])
    teacher, handler = Teacher(), GradientAIFineTuningHandler()
    handler.attach(teacher)
    for question in QUESTIONS:
        index.as_query_engine(llm=teacher, output_cls=Colour).query(question)
    handler.save_finetuning_events(tmp_path / "events.jsonl")
    data = FinetuneDataset.load(handler.path).save(tmp_path / "parts.jsonl", format="gradient-structured")

    base = GradientBaseModelLLM(base_model_slug="tiny", max_tokens=60, is_chat_model=True)
    untuned = index.as_query_engine(llm=base, output_cls=Colour).query(QUESTIONS[0])
    assert str(untuned) == "Empty Response"  # LlamaIndex swallows the error of an answer that is no JSON

    engine = GradientFinetuneEngine(base_model_slug="tiny", name="colours", data_path=data, batch_size=2)
    for _epoch in range(12):
        engine.finetune()
    assert engine.get_current_job().progress["epochs"] == 12

    tuned = engine.get_finetuned_model(max_tokens=60)
    for question in QUESTIONS:
        assert index.as_query_engine(llm=tuned, output_cls=Colour).query(question).response == ANSWER
    again = GradientFinetuneEngine(
        model_adapter_id=engine.model_adapter_id, data_path=tmp_path / "events.jsonl"
    )
    again.finetune()  # the handler's own lines: whole texts
    with service.client() as client:
        client.get_model_adapter(model_adapter_id=engine.model_adapter_id).delete()
