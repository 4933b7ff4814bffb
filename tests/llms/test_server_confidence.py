"""Answers of a server come with the trust that its log-probabilities give, however they are asked for."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.prompts import PromptTemplate

from llama_index_finetune_structured import (
    Cascade,
    FinetuneDataset,
    LoraFinetuneEngine,
    LoraLLM,
    LoraSettings,
    export_adapter,
    hosted_llm,
    served_llm,
)
from llama_index_finetune_structured.errors import ConfigurationError
from llama_index_finetune_structured.llms.exported import open_export
from llama_index_finetune_structured.llms.structured import with_schema
from llama_index_finetune_structured.local.schema.bounds import schema_key
from llama_index_finetune_structured.trust.answer_trust import Trust
from llama_index_finetune_structured.trust.calibration import Calibration, Logistic
from llama_index_finetune_structured.trust.lookup import trust_of
from tests import exporting
from tests.exporting import Colour
from tests.fakes.openai_server import OpenAIServer

CHAT = "/v1/chat/completions"
PROMPT = PromptTemplate("Describe colour 7.")
ANSWER = '{"name":"red","warm":true}'
MESSAGES = [ChatMessage("Describe colour 7.")]


def scored(text: str) -> list[dict[str, Any]]:
    """A token a word of the answer, "red" at 0.5 and all others certain."""
    pieces = ['{"name":"', "red", '","warm":', "true", "}"] if text == ANSWER else [text]
    return [
        {
            "token": piece,
            "bytes": list(piece.encode()),
            "logprob": (own := math.log(0.5) if piece == "red" else 0.0),
            "top_logprobs": [
                {"token": piece, "bytes": None, "logprob": own},
                {"token": "blue", "bytes": None, "logprob": math.log(0.5) if piece == "red" else -50.0},
            ],
        }
        for piece in pieces
    ]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    return exporting.train(exporting.save_base("llama", folder / "base"), folder / "run").adapter


def running(**options: Any) -> OpenAIServer:
    return OpenAIServer(answer_chat=lambda _: ANSWER, logprobs=scored, **options)


def hosted(server: OpenAIServer, **options: Any) -> Any:
    merged: dict[str, Any] = {"confidence": True, "transport": "json_schema", **options}
    return hosted_llm("tuned", api_base=server.base, api_key=server.key, **merged)


async def _last(stream: Any) -> Any:
    return [one async for one in await stream][-1]


WAYS: dict[str, Callable[[Any], Any]] = {
    "predict": lambda llm: llm.structured_predict(Colour, PROMPT),
    "apredict": lambda llm: asyncio.run(llm.astructured_predict(Colour, PROMPT)),
    "stream": lambda llm: [*llm.stream_structured_predict(Colour, PROMPT)][-1],
    "astream": lambda llm: asyncio.run(_last(llm.astream_structured_predict(Colour, PROMPT))),
    "structured llm": lambda llm: llm.as_structured_llm(Colour).chat(MESSAGES).raw,
    "chat": lambda llm: llm.chat(MESSAGES, **with_schema(Colour, None)),
    "achat": lambda llm: asyncio.run(llm.achat(MESSAGES, **with_schema(Colour, None))),
    "stream chat": lambda llm: [*llm.stream_chat(MESSAGES, **with_schema(Colour, None))][-1],
    "astream chat": lambda llm: asyncio.run(_last(llm.astream_chat(MESSAGES, **with_schema(Colour, None)))),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_asking_gives_the_trust(way: str, adapter: Path) -> None:
    with running() as server:
        llm = served_llm(adapter, model="tuned", api_base=server.base, api_key=server.key)
        trust = trust_of(WAYS[way](llm))
        body = server.calls("POST", CHAT)[-1].json()
        assert server.refusals == []
    assert (body["logprobs"], body["top_logprobs"]) == (True, 20)
    assert trust.probability == pytest.approx(0.5)
    assert {field.path: field.probability for field in trust.fields} == {
        ("name",): pytest.approx(0.5, abs=1e-4),
        ("warm",): pytest.approx(1.0, abs=1e-4),
    }
    assert trust.answered_by == "tuned"


@pytest.mark.parametrize("transport", ["json_schema", "text"])
@pytest.mark.parametrize("way", ["predict", "apredict", "stream", "astream", "structured llm"])
def test_a_hosted_model_gives_it_where_it_is_asked_for(way: str, transport: str) -> None:
    with running() as server:
        assert trust_of(WAYS[way](hosted(server, transport=transport))).probability == pytest.approx(0.5)
        silent = WAYS[way](hosted(server, transport=transport, confidence=False))
        assert "logprobs" not in server.calls("POST", CHAT)[-1].json()
        with pytest.raises(ConfigurationError, match="nothing is known"):
            trust_of(silent)


@pytest.mark.parametrize("way", ["predict", "apredict"])
def test_tool_calls_have_a_trust_without_probabilities(way: str) -> None:
    with running() as server:
        trust = trust_of(WAYS[way](hosted(server, transport="tools")))
        assert "logprobs" not in server.calls("POST", CHAT)[-1].json()
    assert trust.probability is None
    assert [(field.path, field.value) for field in trust.fields] == [(("name",), "red"), (("warm",), True)]


@pytest.mark.parametrize("status", [400, 403, 422])
@pytest.mark.parametrize("way", ["predict", "apredict", "stream", "astream"])
def test_a_server_that_refuses_logprobs_is_asked_without_and_that_is_said_once(
    way: str, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    with running(refusal=status) as server, caplog.at_level(logging.WARNING):
        llm = hosted(server)
        for _ in range(3):
            assert trust_of(WAYS[way](llm)).probability is None
        bodies = [call.json() for call in server.calls("POST", CHAT)]
    assert ["logprobs" in body for body in bodies] == [True, False, False, False]
    said = [record.getMessage() for record in caplog.records if "gives no logprobs" in record.getMessage()]
    assert len(said) == 1
    assert "not allowed to request logprobs" in said[0]


def test_another_error_is_raised_as_before_and_logprobs_are_asked_for_again() -> None:
    from openai import BadRequestError

    with running() as server:
        llm = hosted(server)
        with pytest.raises(BadRequestError):
            llm.structured_predict(Colour, PROMPT, llm_kwargs={"extra_body": {"unknown": 1}})
        assert trust_of(WAYS["predict"](llm)).probability == pytest.approx(0.5)


def test_plain_chats_are_sent_as_before(adapter: Path) -> None:
    with running() as server:
        llm = served_llm(adapter, model="tuned", api_base=server.base, api_key=server.key)
        response = llm.chat(MESSAGES)
        assert "logprobs" not in server.calls("POST", CHAT)[-1].json()
    assert "trust" not in response.additional_kwargs


def test_a_server_that_leaves_logprobs_out_is_no_error() -> None:
    with OpenAIServer(answer_chat=lambda _: ANSWER) as server:
        assert trust_of(WAYS["predict"](hosted(server))).probability is None


def test_calls_at_once_have_each_their_own_trust() -> None:
    def answer(body: dict[str, Any]) -> str:
        name = body["messages"][-1]["content"].rpartition(" ")[2].rstrip(".")
        return json.dumps({"name": name, "warm": True})

    async def ask(llm: Any) -> list[Any]:
        prompts = [PromptTemplate(f"Describe colour {n}.") for n in range(12)]
        return await asyncio.gather(*(llm.astructured_predict(Colour, prompt) for prompt in prompts))

    with OpenAIServer(answer_chat=answer, logprobs=scored) as server:
        for n, colour in enumerate(asyncio.run(ask(hosted(server)))):
            assert trust_of(colour).fields[0].value == colour.name == str(n)


def test_the_trust_is_calibrated_by_the_class_of_the_answer(adapter: Path) -> None:
    surer = Calibration(answer=Logistic(bias=2.0), rows=40)
    calibrations = {schema_key(Colour.model_json_schema()): surer}
    with running() as server:
        served = served_llm(
            adapter, model="tuned", api_base=server.base, api_key=server.key, calibrations=calibrations
        )
        for llm in (
            served,
            hosted(server, calibrations=calibrations),
            hosted(server, transport="text", calibrations=calibrations),
        ):
            for way in ("predict", "astream"):
                trust = trust_of(WAYS[way](llm))
                assert trust.calibrated
                assert trust.probability == pytest.approx(1 / (1 + math.exp(-2.0)))


@pytest.mark.parametrize(("threshold", "model"), [(0.4, "tuned"), (0.6, "teacher")])
@pytest.mark.parametrize("way", ["predict", "apredict", "stream", "astream", "structured llm", "chat"])
def test_a_cascade_takes_such_a_model_for_its_student(
    way: str, threshold: float, model: str, adapter: Path
) -> None:
    with running() as server:
        student = served_llm(adapter, model="tuned", api_base=server.base, api_key=server.key)
        teacher = hosted_llm(
            "teacher", api_base=server.base, api_key=server.key, transport="json_schema", context_window=9000
        )
        trust = trust_of(WAYS[way](Cascade(student, teacher, threshold=threshold)))
    assert (trust.answered_by, trust.sure) == (model, True)


def test_the_response_carries_it_as_json_and_a_copy_of_the_model_asks_for_it(adapter: Path) -> None:
    with running() as server:
        llm = served_llm(adapter, model="tuned", api_base=server.base, api_key=server.key)
        response = WAYS["chat"](llm)
        assert Trust.model_validate(json.loads(json.dumps(response.additional_kwargs["trust"]))) == trust_of(
            response
        )
        assert pickle.loads(pickle.dumps(llm)).confidence


def _trained(folder: Path) -> Path:
    """An adapter that answers with words, so that llama.cpp and the local model give the same ones."""
    pairs = [
        (f"Describe colour {n}.", Colour(name=name, warm=n % 2 == 0))
        for n, name in enumerate(["red", "blue", "red", "green"])
    ]
    engine = LoraFinetuneEngine(
        FinetuneDataset.from_pairs(pairs, output_cls=Colour),
        base_model=exporting.save_base("llama", folder / "base"),
        output_dir=folder / "run",
        config=LoraSettings(rank=8, alpha=16, batch_size=4, epochs=40, learning_rate=2e-2),
    )
    engine.finetune()
    return engine.adapter


def test_llama_cpp_is_as_sure_as_the_local_model_and_answers_as_without(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason="llama.cpp is not installed (extra llamacpp)")
    adapter = _trained(tmp_path)
    local = LoraLLM.from_adapter(adapter, grounded=False)
    output = export_adapter(adapter, tmp_path / "tuned.gguf", format="gguf")
    with open_export(output, adapter, format="gguf") as llm:
        silent: Any = llm.model_copy(update={"confidence": False})
        every: Any = llm.model_copy(
            update={"additional_kwargs": {"top_logprobs": 1000}}
        )  # the whole vocabulary
        for number in range(4):
            messages, asked = [ChatMessage(f"Describe colour {number}.")], with_schema(Colour, None)
            answer, own = every.chat(messages, **asked), local.chat(messages, **asked)
            assert answer.message.content == silent.chat(messages, **asked).message.content
            assert json.loads(answer.message.content or "") == json.loads(own.message.content or "")
            for one, other in zip(trust_of(answer).fields, trust_of(own).fields, strict=True):
                assert one.writing
                assert other.writing
                assert one.writing.unmasked == pytest.approx(other.writing.unmasked, rel=0.02, abs=0.02)
                assert one.writing.unmasked <= one.writing.total <= other.writing.total + 0.02
            prompt = PromptTemplate(f"Describe colour {number}.")
            streamed = [*every.stream_structured_predict(Colour, prompt)][-1]
            whole, last = trust_of(answer).tokens, trust_of(streamed).tokens
            assert whole
            assert last
            assert last.total == pytest.approx(whole.total, rel=0.01)
