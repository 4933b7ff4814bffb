"""A served adapter gets exactly the prompts of its training; GGUF files answer over the same protocol."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import pytest
from llama_index.core import SummaryIndex
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.core.output_parsers import PydanticOutputParser
from llama_index.core.prompts import ChatPromptTemplate, PromptTemplate, SelectorPromptTemplate
from llama_index.core.schema import TextNode
from pydantic import AwareDatetime, BaseModel, Field

from llama_index_finetune_structured import LoraLLM, export_adapter, served_llm, trust_of
from llama_index_finetune_structured.errors import ConfigurationError, StructuredAnswerError
from llama_index_finetune_structured.example import Message
from llama_index_finetune_structured.files import write_json
from llama_index_finetune_structured.formats.wire import message_to_wire
from llama_index_finetune_structured.llms.exported import open_export
from llama_index_finetune_structured.llms.local_calls import prompt_ids
from llama_index_finetune_structured.llms.served import ServedLora
from llama_index_finetune_structured.llms.structured import parse_response
from llama_index_finetune_structured.local.model.adapter import CARD, AdapterCard
from llama_index_finetune_structured.local.model.chat_template import system_form
from llama_index_finetune_structured.local.model.prompts import PromptForm, messages_with_schema
from llama_index_finetune_structured.local.schema.bounds import AnswerBounds, bounded_schema, schema_key
from llama_index_finetune_structured.local.schema.compact import compact_schema
from llama_index_finetune_structured.local.schema.grammar_schema import grammar_schema
from tests import exporting, tiny
from tests.exporting import Colour
from tests.fakes.openai_server import OpenAIServer
from tests.local import chat_bases

CHAT = "/v1/chat/completions"
PROMPT = PromptTemplate("Describe colour 7.")
FIRST_ONLY = tiny.TEMPLATE.replace(
    "messages %}", "messages if message == messages[0] or message.role != 'system' %}"
)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    return exporting.train(exporting.save_base("llama", folder / "base"), folder / "run").adapter


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    with OpenAIServer() as running:
        yield running


def _llm(adapter: Path, server: OpenAIServer, **options: Any) -> ServedLora:
    return served_llm(adapter, model="tuned", api_base=server.base, api_key=server.key, **options)


@pytest.mark.parametrize("way", ["predict", "apredict", "structured llm", "query engine"])
def test_every_way_of_asking_sends_the_trained_prompt_and_a_bounded_schema(
    way: str, adapter: Path, server: OpenAIServer
) -> None:
    llm, local = _llm(adapter, server), LoraLLM.from_adapter(adapter)
    engine = SummaryIndex([TextNode(text="Red is warm.")]).as_query_engine(llm=llm, output_cls=Colour)
    ask = {
        "predict": lambda: llm.structured_predict(Colour, PROMPT),
        "apredict": lambda: asyncio.run(llm.astructured_predict(Colour, PROMPT)),
        "structured llm": lambda: llm.as_structured_llm(Colour).chat([ChatMessage("Describe colour 7.")]).raw,
        "query engine": lambda: engine.query("Is red warm?").response,
    }[way]
    assert isinstance(ask(), Colour)
    body = server.calls("POST", CHAT)[-1].json()
    tokenizer = local._loaded.tokenizer
    if way != "query engine":
        trained = local.prompt_token_ids([ChatMessage("Describe colour 7.")], Colour)
        assert (
            tokenizer.apply_chat_template(body["messages"], add_generation_prompt=True)["input_ids"]
            == trained
        )
    assert body["messages"][0]["content"].endswith(compact_schema(Colour.model_json_schema()))
    schema = body["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["name"]["maxLength"] == 80
    assert schema["additionalProperties"] is False
    assert (body["temperature"], body["max_tokens"]) == (0.0, 512)
    assert server.refusals == []


class Bill(BaseModel):
    total: Decimal = Field(max_digits=6, decimal_places=2)
    due: AwareDatetime
    by_year: dict[int, str]


@pytest.mark.parametrize(
    "way", ["predict", "apredict", "stream", "astream", "structured llm", "query engine"]
)
def test_the_servers_grammar_is_the_local_one_and_the_prompt_the_trained_one(way: str, adapter: Path) -> None:
    answer = '{"total":"1.50","due":"2026-01-01T00:00:00Z","by_year":{"1":"a"}}'

    async def last_of(llm: ServedLora) -> Any:
        return [part async for part in await llm.astream_structured_predict(Bill, PROMPT)][-1]

    with OpenAIServer(answer_chat=lambda _: answer) as server:
        llm = _llm(adapter, server)
        engine = SummaryIndex([TextNode(text="A bill.")]).as_query_engine(llm=llm, output_cls=Bill)
        ask: dict[str, Any] = {
            "predict": lambda: llm.structured_predict(Bill, PROMPT),
            "apredict": lambda: asyncio.run(llm.astructured_predict(Bill, PROMPT)),
            "stream": lambda: [*llm.stream_structured_predict(Bill, PROMPT)][-1],
            "astream": lambda: asyncio.run(last_of(llm)),
            "structured llm": lambda: llm.as_structured_llm(Bill).chat([ChatMessage("A bill.")]).raw,
            "query engine": lambda: engine.query("Which bill?").response,
        }
        assert ask[way]().total == Decimal("1.50")
        body = server.calls("POST", CHAT)[-1].json()
        assert server.refusals == []
    assert body["messages"][0]["content"].endswith(compact_schema(Bill.model_json_schema()))
    sent = body["response_format"]["json_schema"]["schema"]
    local = grammar_schema(Bill)
    assert sent == bounded_schema(local, schema_key(Bill.model_json_schema()), llm.bounds)
    texts = [branch for branch in sent["properties"]["total"]["anyOf"] if branch["type"] == "string"]
    assert texts
    assert not any(re.fullmatch(branch["pattern"], "123456") for branch in texts), (
        "max_digits=6, decimal_places=2"
    )
    zoned = sent["properties"]["due"]["pattern"]
    assert re.fullmatch(zoned, "2026-01-01T00:00:00Z")
    assert not re.fullmatch(zoned, "2026-01-01T00:00:00")


def test_thinking_is_left_out_and_calls_are_sent_as_in_training(adapter: Path, server: OpenAIServer) -> None:
    call = ToolCallBlock(tool_call_id="1", tool_name="price", tool_kwargs={"of": "red"})
    messages = [
        ChatMessage("Price?"),
        ChatMessage(role="assistant", blocks=[ThinkingBlock(content="hm"), call]),
        ChatMessage(role="assistant", blocks=[ThinkingBlock(content="hm"), TextBlock(text="Low.")]),
        ChatMessage("And blue?"),
    ]
    trained = messages_with_schema([Message(**message_to_wire(message)) for message in messages], None)
    _llm(adapter, server).chat(messages)
    sent = server.calls("POST", CHAT)[-1].json()["messages"]
    assert [message["content"] for message in sent] == [message["content"] for message in trained]
    assert "price" in sent[1]["content"]
    assert sent[2]["content"] == "Low."


def test_an_answer_that_the_servers_limit_cut_is_told_as_such() -> None:
    raw = {"choices": [{"finish_reason": "length"}], "usage": {"completion_tokens": 9}}
    response = ChatResponse(message=ChatMessage(role="assistant", content='{"na'), raw=raw)
    with pytest.raises(StructuredAnswerError, match="cut at the limit of 9 tokens"):
        parse_response(Colour, response)


def test_llama_cpp_writes_decimals_and_moments_that_validate(adapter: Path, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason="llama.cpp is not installed (extra llamacpp)")

    class Paid(BaseModel):
        total: Annotated[Decimal, Field(ge=0)] | None
        due: AwareDatetime

    output = export_adapter(adapter, tmp_path / "tuned.gguf", format="gguf")
    with open_export(output, adapter, format="gguf") as llm:
        answered = 0
        for seed in range(8):
            options = {"temperature": 1.0, "seed": seed}
            try:
                paid = llm.structured_predict(Paid, PROMPT, llm_kwargs=options)
            except StructuredAnswerError as error:
                if "finite number" not in str(error):  # its grammar writes exponents that no float holds
                    raise
                continue
            assert paid.due.tzinfo is not None
            answered += 1
        assert answered >= 4


class Request(BaseModel):
    artist: str | None = None
    album: str | None = None
    year: int | None = None


def _by_text(llm: Any) -> Any:
    """The LLM of an adapter whose training answers had the keys of Request in the order of the text."""
    key = schema_key(Request.model_json_schema())
    return llm.model_copy(update={"bounds": llm.bounds.model_copy(update={"by_text": (key,)})})


def test_a_server_gets_a_schema_of_keys_in_any_order_where_training_had_them_so(adapter: Path) -> None:
    with OpenAIServer(answer_chat=lambda _: '{"year":1999,"artist":"nick"}') as server:
        llm = _by_text(_llm(adapter, server))
        assert llm.structured_predict(Request, PROMPT) == Request(artist="nick", year=1999)
        sent = server.calls("POST", CHAT)[-1].json()["response_format"]["json_schema"]["schema"]
    any_order, ordered = sent["anyOf"]
    assert list(any_order["patternProperties"]) == ["^artist$", "^album$", "^year$"]
    assert list(ordered["properties"]) == ["artist", "album", "year"]


def test_llama_cpp_answers_a_schema_of_keys_in_any_order(adapter: Path, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp", reason="llama.cpp is not installed (extra llamacpp)")
    output = export_adapter(adapter, tmp_path / "tuned.gguf", format="gguf")
    with open_export(output, adapter, format="gguf") as llm:
        for seed in range(3):
            options = {"temperature": 1.0, "seed": seed}
            assert isinstance(_by_text(llm).structured_predict(Request, PROMPT, llm_kwargs=options), Request)


def test_a_query_engine_sends_a_served_model_the_prompt_of_the_local_one(
    adapter: Path, server: OpenAIServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts: list[Any] = []
    local = LoraLLM.from_adapter(adapter, max_new_tokens=64)
    prompt = LoraLLM._prompt
    monkeypatch.setattr(
        LoraLLM, "_prompt", lambda llm, *args: prompts.append(prompt(llm, *args)) or prompts[-1]
    )
    for llm in (local, _llm(adapter, server)):
        SummaryIndex([TextNode(text="Red is warm.")]).as_query_engine(llm=llm, output_cls=Colour).query(
            "Warm?"
        )
    messages = server.calls("POST", CHAT)[-1].json()["messages"]
    tokenizer = local._loaded.tokenizer
    assert tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"] == prompts[-1]


def test_a_servers_answer_says_where_its_values_stand(adapter: Path, server: OpenAIServer) -> None:
    llm = _llm(adapter, server)
    prompt, node = PromptTemplate("{text}"), TextNode(text="x", id_="colours")
    answer: Any = llm.structured_predict(Colour, prompt, text="nothing")
    node.text = f"The colour is {answer.name}."
    for found in (
        llm.structured_predict(Colour, prompt, text=node.text),
        asyncio.run(llm.astructured_predict(Colour, prompt, text=node.text)),
        SummaryIndex([node]).as_query_engine(llm=llm, output_cls=Colour).query("Which?"),
    ):
        trust = trust_of(found)
        assert trust.probability is None
        evidence = {field.path: field.evidence for field in trust.fields}["name",]
        assert evidence is not None
        assert evidence.text == answer.name
        assert evidence.node_id in (None, "colours")


def test_an_answer_that_does_not_fit_raises(adapter: Path) -> None:
    with (
        OpenAIServer(answer_chat=lambda _: '{"name":"red"}') as running,
        pytest.raises(StructuredAnswerError, match="does not fit Colour"),
    ):
        _llm(adapter, running).structured_predict(Colour, PROMPT)


def test_plain_chat_sends_the_messages_unchanged(adapter: Path, server: OpenAIServer) -> None:
    _llm(adapter, server).chat([ChatMessage("Hello")])
    body = server.calls("POST", CHAT)[-1].json()
    assert body["messages"] == [{"role": "user", "content": "Hello"}]
    assert "response_format" not in body


def test_the_key_is_in_no_repr_or_dump(adapter: Path, server: OpenAIServer) -> None:
    llm = _llm(adapter, server)
    assert server.key not in f"{llm!r} {llm.model_dump()}"


def test_a_merged_folder_is_enough_for_the_prompts_of_training(
    adapter: Path, server: OpenAIServer, tmp_path: Path
) -> None:
    merged = export_adapter(adapter, tmp_path / "merged")
    llm = served_llm(merged, model="tuned", api_base=server.base, api_key=server.key)
    assert llm.bounds == _llm(adapter, server).bounds
    assert llm.metadata.context_window == LoraLLM.from_merged(merged).metadata.context_window < 8192
    with pytest.raises(ConfigurationError, match=r"finetune_structured\.json"):
        served_llm(tmp_path, model="tuned", api_base=server.base)


@pytest.mark.parametrize("format", ["merged", "gguf"])
def test_an_export_is_opened_as_an_llm_again(adapter: Path, tmp_path: Path, format: str) -> None:
    if format == "gguf":
        pytest.importorskip("xllamacpp", reason="llama.cpp is not installed (extra llamacpp)")
    output = export_adapter(
        adapter, tmp_path / ("tuned" if format == "merged" else "tuned.gguf"), format=format
    )
    with open_export(output, adapter, format=format) as llm:
        assert isinstance(llm.structured_predict(Colour, PROMPT), Colour)


def test_an_adapter_gguf_without_a_gguf_base_is_refused_with_the_fix(adapter: Path, tmp_path: Path) -> None:
    output = export_adapter(adapter, tmp_path / "lora.gguf", format="gguf-adapter")
    with (
        pytest.raises(ConfigurationError, match="export 'gguf-base' too"),
        open_export(output, adapter, format="gguf-adapter"),
    ):
        pass


def test_a_base_that_moved_after_training_is_looked_for_at_base_model(adapter: Path, tmp_path: Path) -> None:
    output = export_adapter(adapter, tmp_path / "lora.gguf", format="gguf-adapter")
    with (
        pytest.raises(ConfigurationError, match="'/moved/away': no such"),
        open_export(output, adapter, format="gguf-adapter", base_model="/moved/away"),
    ):
        pass


@pytest.mark.parametrize("template", ["gemma", "phi3", "llama3", "first only"])
def test_a_server_gets_system_messages_in_the_form_of_training(
    template: str, tmp_path: Path, server: OpenAIServer
) -> None:
    tokenizer = chat_bases.tokenizer("byte-level", None if template == "first only" else template)
    if template == "first only":
        tokenizer.chat_template = FIRST_ONLY
    card = AdapterCard(
        base_model="base", base_sha256="0", bounds=AnswerBounds(), longest_answer_tokens=9, rows=1,
        fingerprint="f", system_messages=system_form(tokenizer),
    )  # fmt: skip
    write_json(tmp_path / CARD, card.model_dump(mode="json"))
    llm = _llm(tmp_path, server, system_prompt="Be brief.")
    asked = [ChatMessage(role="system", content="Cite."), ChatMessage(content="Describe colour 7.")]
    llm.structured_predict(Colour, ChatPromptTemplate(asked))
    sent = server.calls("POST", CHAT)[-1].json()["messages"]
    messages = [ChatMessage(role="system", content="Be brief."), *asked]
    trained = prompt_ids(
        tokenizer,
        messages,
        Colour.model_json_schema(),
        PromptForm(reads_twice=card.reads_twice),
        context_window=2048,
    )
    rendered: Any = tokenizer.apply_chat_template(sent, add_generation_prompt=True)
    assert rendered["input_ids"] == trained
    assert "Cite." in tokenizer.decode(trained)


@pytest.mark.parametrize("selects", [False, True])
def test_a_prompt_that_a_model_of_the_text_transport_was_asked_with_is_the_trained_one(
    selects: bool, adapter: Path, server: OpenAIServer
) -> None:
    local = LoraLLM.from_adapter(adapter)
    prompt: Any = PromptTemplate("Describe colour {n}.")
    prompt = SelectorPromptTemplate(prompt, [(lambda _: True, prompt)]) if selects else prompt
    before = local._messages(prompt, {"n": 7})
    prompt.output_parser = PydanticOutputParser(
        Colour
    )  # LlamaIndex's text program sets it on the user's object
    assert local._messages(prompt, {"n": 7}) == before
    llm = _llm(adapter, server)
    llm.structured_predict(Colour, prompt, n=7)
    [*llm.stream_structured_predict(Colour, prompt, n=7)]
    for call in server.calls("POST", CHAT):
        assert "JSON schema to follow" not in json.dumps(call.json()["messages"])
