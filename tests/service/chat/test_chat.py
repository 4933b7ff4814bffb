"""OpenAI's SDK, unmodified, against the service: answers are those of ``LoraLLM``, and so are their ends."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest
from llama_index.core.base.llms.types import ChatMessage
from openai import BadRequestError, OpenAI

from llama_index_finetune_structured import LoraLLM
from llama_index_finetune_structured.answer_values import class_schema
from llama_index_finetune_structured.llms.structured import SECOND_ATTEMPT
from tests.agents.scripted import WIRE
from tests.exporting import Colour
from tests.service.chat.chat_server import ChatServer
from tests.service.chat.replies import events

ASKED: Any = [{"role": "user", "content": "Describe colour 1."}]
CHAT = [ChatMessage(role="user", content="Describe colour 1.")]
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "Colour", "schema": class_schema(Colour)}}


def streamed(server: ChatServer, **body: Any) -> list[Any]:
    """The chunks of a stream, each checked."""
    url = f"{server.url}/chat/completions"
    with httpx.stream("POST", url, json={"messages": ASKED, "stream": True, **body}, timeout=60) as response:
        assert response.status_code == 200, response.read()
        return events(response)


def joined(chunks: list[Any], index: int = 0) -> dict[str, Any]:
    """The message, logprobs and end of a choice whose chunks are these."""
    message: dict[str, Any] = {"content": None, "tool_calls": []}
    logprobs, reasons = list[Any](), list[str]()
    for choice in (choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index):
        delta = choice["delta"]
        if delta.get("content") is not None:
            message["content"] = (message["content"] or "") + delta["content"]
        for call in delta.get("tool_calls", ()):
            if "id" in call:
                assert call["index"] == len(message["tool_calls"])
                message["tool_calls"].append({"id": call["id"], **call["function"]})
            else:
                message["tool_calls"][call["index"]]["arguments"] += call["function"]["arguments"]
        logprobs += (choice["logprobs"] or {"content": []})["content"]
        reasons += [choice["finish_reason"]] if choice["finish_reason"] else []
    assert len(reasons) == 1
    return {**message, "logprobs": logprobs, "finish_reason": reasons[0]}


def test_a_text_is_that_of_the_llm(client: OpenAI, colours: LoraLLM, chat_server: ChatServer) -> None:
    own = colours.chat(CHAT)
    reply = client.chat.completions.create(model="colours", messages=ASKED)
    assert reply.choices[0].message.content == own.message.content
    assert reply.choices[0].finish_reason == own.raw["finish_reason"]
    assert reply.usage is not None
    assert reply.usage.model_dump(include={"prompt_tokens", "completion_tokens"}) == own.raw["usage"]
    chunks = streamed(chat_server, model="colours")
    assert joined(chunks)["content"] == own.message.content
    assert len(chunks) > 3


@pytest.mark.parametrize("way", ["schema", "parse", "stream"])
def test_a_trained_schema_has_its_trained_prompt_also_as_the_sdk_sends_it(
    way: str, client: OpenAI, colours: LoraLLM, chat_server: ChatServer
) -> None:
    own = colours.chat(CHAT, response_format=FORMAT)
    if way == "schema":
        reply = client.chat.completions.create(model="colours", messages=ASKED, response_format=FORMAT)
    elif way == "parse":
        reply = client.chat.completions.parse(model="colours", messages=ASKED, response_format=Colour)
        assert reply.choices[0].message.parsed == Colour.model_validate_json(own.message.content or "")
    else:
        with client.chat.completions.stream(
            model="colours", messages=ASKED, response_format=Colour, stream_options={"include_usage": True}
        ) as stream:
            reply = stream.get_final_completion()
    assert reply.choices[0].message.content == own.message.content
    assert reply.usage is not None
    assert reply.usage.prompt_tokens == own.raw["usage"]["prompt_tokens"]


def test_json_object_is_one_json_object(client: OpenAI) -> None:
    reply = client.chat.completions.create(
        model="tiny", messages=ASKED, response_format={"type": "json_object"}, max_tokens=40
    )
    assert isinstance(json.loads(reply.choices[0].message.content or ""), dict)


CHOICES: Any = [
    "auto",
    "required",
    "none",
    {"type": "function", "function": {"name": "seconds_of"}},
    {
        "type": "allowed_tools",
        "allowed_tools": {
            "mode": "required",
            "tools": [{"type": "function", "function": {"name": "add"}}],
        },
    },
]


@pytest.mark.parametrize(
    "choice", CHOICES, ids=lambda choice: choice if isinstance(choice, str) else choice["type"]
)
def test_calls_of_tools_are_those_of_the_llm_whole_and_in_pieces(
    choice: Any, client: OpenAI, tiny: LoraLLM, chat_server: ChatServer
) -> None:
    asked: Any = {"model": "tiny", "max_tokens": 90, "tools": WIRE, "tool_choice": choice}
    is_named = isinstance(choice, dict) and choice["type"] == "function"
    own = tiny.chat(CHAT, tools=WIRE, tool_choice=choice, max_tokens=90, parallel_tool_calls=not is_named)
    calls = [
        (call["function"]["name"], json.loads(call["function"]["arguments"]))
        for call in own.message.additional_kwargs.get("tool_calls", ())
    ]
    reply = client.chat.completions.create(messages=ASKED, **asked).choices[0]
    whole = [
        (call.function.name, json.loads(call.function.arguments)) for call in reply.message.tool_calls or ()
    ]
    assert whole == calls
    assert (reply.message.content or "") == (own.message.content or "")
    assert reply.finish_reason == ("tool_calls" if calls else "stop")
    pieces = joined(streamed(chat_server, **asked))
    assert [(call["name"], json.loads(call["arguments"])) for call in pieces["tool_calls"]] == calls
    assert (pieces["content"] or "") == (own.message.content or "")
    assert len({call["id"] for call in pieces["tool_calls"]}) == len(calls)
    assert pieces["finish_reason"] == reply.finish_reason
    if choice == "none":
        assert not calls
    elif choice != "auto":
        assert calls
    if isinstance(choice, dict):
        assert {name for name, _ in calls} == {"add" if choice["type"] == "allowed_tools" else "seconds_of"}


def test_a_result_of_a_tool_is_sent_back_as_the_reply_had_it(client: OpenAI) -> None:
    asked: Any = {"model": "tiny", "tools": WIRE, "max_tokens": 90}
    message = (
        client.chat.completions.create(messages=ASKED, tool_choice="required", **asked).choices[0].message
    )
    assert message.tool_calls
    results: Any = [
        {"role": "tool", "tool_call_id": call.id, "content": [{"type": "text", "text": "371"}]}
        for call in message.tool_calls
    ]
    reply = client.chat.completions.create(messages=[*ASKED, message, *results], tool_choice="none", **asked)
    assert reply.choices[0].message.content is not None


def test_instructions_of_a_developer_are_those_of_a_system_and_parts_are_one_text(client: OpenAI) -> None:
    def answer(role: str, content: Any) -> str | None:
        messages: Any = [{"role": role, "content": content}, *ASKED]
        return (
            client.chat.completions.create(model="tiny", messages=messages, max_tokens=12)
            .choices[0]
            .message.content
        )

    parts = [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief.", "cache_control": {}}]
    assert answer("developer", "Be brief.") == answer("system", "Be brief.") == answer("system", parts)


def test_logprobs_are_of_the_texts_tokens(client: OpenAI, chat_server: ChatServer) -> None:
    asked: Any = {"model": "tiny", "logprobs": True, "top_logprobs": 3, "max_tokens": 30}
    choice = client.chat.completions.create(messages=ASKED, **asked).choices[0]
    assert choice.logprobs is not None
    tokens = choice.logprobs.content or []
    written = b"".join(bytes(token.bytes or ()) for token in tokens)
    assert written.decode("utf-8", "replace") == choice.message.content
    for token in tokens:
        best = [one.logprob for one in token.top_logprobs]
        assert len(best) == 3
        assert best == sorted(best, reverse=True)
        assert token.logprob == best[0] <= 0  # greedy
    pieces = joined(streamed(chat_server, **asked))["logprobs"]
    assert [one["bytes"] for one in pieces] == [token.bytes for token in tokens]
    assert [one["logprob"] for one in pieces] == pytest.approx([token.logprob for token in tokens], abs=1e-4)


def test_tokens_of_a_stop_text_are_in_no_logprobs(client: OpenAI) -> None:
    asked: Any = {"model": "tiny", "max_tokens": 30, "logprobs": True, "messages": ASKED}
    text = client.chat.completions.create(**asked).choices[0].message.content or ""
    stop = re.findall(r"[ -~]{2}", text)[-1]
    choice = client.chat.completions.create(stop=[stop, "never"], **asked).choices[0]
    assert choice.message.content == text[: text.find(stop)]
    assert choice.finish_reason == "stop"
    assert choice.logprobs is not None
    spelled = "".join(token.token for token in choice.logprobs.content or ())
    assert spelled.startswith(choice.message.content)
    assert len(spelled) <= len(choice.message.content) + 4  # the token that the stop text begins in


def test_several_choices_are_drawn_and_a_seed_repeats_them(client: OpenAI, chat_server: ChatServer) -> None:
    asked: Any = {"model": "tiny", "n": 3, "temperature": 1.5, "seed": 7, "max_tokens": 12}
    first, again = (client.chat.completions.create(messages=ASKED, **asked) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert texts == [choice.message.content for choice in again.choices]
    assert first.usage is not None
    assert first.usage.prompt_tokens < 60, "the prompt counts once"
    chunks = streamed(chat_server, **asked, stream_options={"include_usage": True})
    assert [joined(chunks, index)["content"] for index in range(3)] == texts
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == first.usage.completion_tokens
    assert all(chunk["usage"] is None for chunk in chunks[:-1])


def test_the_limit_of_tokens_ends_an_answer(client: OpenAI, chat_server: ChatServer) -> None:
    asked: dict[str, Any] = {"model": "tiny", "messages": ASKED}
    for name in ("max_tokens", "max_completion_tokens"):
        reply = client.chat.completions.create(**asked | {name: 3})
        assert reply.choices[0].finish_reason == "length"
        assert reply.usage is not None
        assert reply.usage.completion_tokens == 3
    assert joined(streamed(chat_server, model="tiny", max_tokens=3))["finish_reason"] == "length"


def test_trust_is_told_where_it_is_asked_for(
    client: OpenAI, colours: LoraLLM, chat_server: ChatServer
) -> None:
    own = colours.chat(CHAT, response_format=FORMAT).raw["trust"]
    asked: Any = {"model": "colours", "response_format": FORMAT}
    trust: Any = client.chat.completions.create(messages=ASKED, extra_body={"trust": True}, **asked).choices[
        0
    ]
    assert [field["path"] for field in trust.trust["fields"]] == [["name"], ["warm"]]
    assert trust.trust["probability"] == pytest.approx(own["probability"], rel=1e-3)
    chunks = streamed(chat_server, trust=True, **asked)
    assert chunks[-1]["choices"][0]["trust"]["fields"] == trust.trust["fields"]
    plain = client.chat.completions.create(messages=ASKED, **asked)
    assert not hasattr(plain.choices[0], "trust")
    assert plain.choices[0].message.content == colours.chat(CHAT, response_format=FORMAT).message.content


def test_fields_without_effect_are_accepted(client: OpenAI) -> None:
    reply = client.chat.completions.create(
        model="tiny",
        messages=ASKED,
        max_tokens=3,
        user="u",
        store=True,
        metadata={"a": "b"},
        service_tier="auto",
        prompt_cache_key="k",
        safety_identifier="s",
        frequency_penalty=0,
        presence_penalty=0.0,
        logit_bias={},
        modalities=["text"],
        verbosity="medium",
        reasoning_effort="none",
        parallel_tool_calls=True,
        n=1,
        top_p=0,
        temperature=1e-9,
        response_format={"type": "text"},
    )
    assert reply.choices[0].message.content


IMAGE = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1/a.png"}}]}
REFUSED: dict[str, Any] = {
    "messages.0.content.0.type": {"messages": [IMAGE]},
    "messages.0.role": {"messages": [{"role": "chatbot", "content": "x"}]},
    "messages.0": {"messages": [{"role": "tool", "content": "x"}]},
    "messages": {"messages": []},
    "frequency_penalty": {"frequency_penalty": 0.5},
    "presence_penalty": {"presence_penalty": -1},
    "logit_bias": {"logit_bias": {"50256": -100}},
    "functions": {"functions": [{"name": "f"}]},
    "web_search_options": {"web_search_options": {}},
    "modalities": {"modalities": ["text", "audio"]},
    "audio": {"audio": {"voice": "alloy", "format": "wav"}},
    "verbosity": {"verbosity": "low"},
    "reasoning_effort": {"reasoning_effort": "high"},
    "no_such_field": {"no_such_field": 1},
    "temperature": {"temperature": 3},
    "top_p": {"top_p": "0.5"},
    "n": {"n": 0},
    "seed": {"seed": 2**70},
    "stop": {"stop": ["a"] * 5},
    "max_tokens": {"max_tokens": 3, "max_completion_tokens": 4},
    "top_logprobs": {"top_logprobs": 3},
    "response_format": {"response_format": {"type": "json_object"}, "tools": WIRE},
    "response_format.json_schema.schema": {
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "thing"}}}
    },
    "tools.0.type": {"tools": [{"type": "custom", "custom": {"name": "a"}}]},
    "tools.0.function.name": {"tools": [{"type": "function", "function": {"name": "a b"}}]},
    "tools": {"tools": [WIRE[0], WIRE[0]]},
    "tool_choice": {"tools": WIRE, "tool_choice": {"type": "function", "function": {"name": "other"}}},
    "trust": {"trust": "yes"},
    "stream_options": {"stream_options": {"include_usage": True}},
    "model": {"model": "no-such-model"},
}


@pytest.mark.parametrize("field", REFUSED)
def test_a_field_that_is_not_supported_is_named(field: str, chat_server: ChatServer) -> None:
    body = {"model": "tiny", "messages": ASKED, **REFUSED[field]}
    reply = httpx.post(f"{chat_server.url}/chat/completions", json=body, timeout=60)
    error = reply.json()["error"]
    assert reply.status_code == (404 if field == "model" else 400), error
    assert error["param"] == field, error
    assert "Value error" not in error["message"]


def test_a_prompt_that_is_too_long_is_told_as_openai_tells_it(client: OpenAI) -> None:
    import openai

    messages: Any = [{"role": "user", "content": "word " * 20_000}]
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny", messages=messages)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")


def _refusing(tiny: LoraLLM) -> tuple[Any, str, str]:
    """A schema that refuses the first answer of a model by what no grammar enforces, and both of its answers."""
    values = [f"{letter}{number}" for letter in "abcdefgh" for number in range(4)]
    for value in values:
        name = {"type": "string", "enum": values, "not": {"const": value}}
        schema = {"type": "object", "properties": {"name": name}, "required": ["name"]}
        asked: Any = {"type": "json_schema", "json_schema": {"name": "Name", "schema": schema}}
        first = tiny.chat(CHAT, response_format=asked).message.content or ""
        second = tiny.chat(CHAT, response_format=asked, **SECOND_ATTEMPT).message.content or ""
        if json.loads(first)["name"] == value != json.loads(second)["name"]:
            return asked, first, second
    raise AssertionError("no schema refuses the first answer alone")


def test_an_answer_that_its_schema_refuses_is_asked_for_a_second_time(client: OpenAI, tiny: LoraLLM) -> None:
    asked, first, second = _refusing(tiny)
    reply = client.chat.completions.create(model="tiny", messages=ASKED, response_format=asked)
    assert reply.choices[0].message.content == second
    name = asked["json_schema"]["schema"]["properties"]["name"]
    name["not"] = {
        "type": "string"
    }  # refuses all: the likeliest answer is given, and the client validates it
    own = tiny.chat(CHAT, response_format=asked)
    reply = client.chat.completions.create(model="tiny", messages=ASKED, response_format=asked, logprobs=True)
    assert reply.choices[0].message.content == own.message.content
    assert reply.usage is not None
    assert reply.usage.completion_tokens > own.raw["usage"]["completion_tokens"]
    assert first


BAD_SCHEMAS: dict[str, Any] = {
    "a reference to nothing": {"$ref": "#/$defs/Nothing"},
    "a pattern that is none": {"type": "string", "pattern": "(["},
    "no number": {"type": "integer", "minimum": 3, "maximum": 1},
}


@pytest.mark.parametrize("kind", BAD_SCHEMAS)
def test_a_schema_without_a_grammar_is_refused_by_its_field_in_terms_of_requests(
    kind: str, client: OpenAI
) -> None:
    schema = {"type": "object", "properties": {"a": BAD_SCHEMAS[kind]}, "required": ["a"]}
    form: Any = {"type": "json_schema", "json_schema": {"name": "bad", "schema": schema}}
    with pytest.raises(BadRequestError) as caught:
        client.chat.completions.create(model="colours", messages=ASKED, response_format=form)
    assert caught.value.param == "response_format.json_schema.schema"
    assert "constrained" not in caught.value.message
    if "pattern" in kind:
        assert "unclosed character class" in caught.value.message


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
def test_a_limit_that_no_answer_fits_in_is_refused_by_its_field(limit: str, client: OpenAI) -> None:
    with pytest.raises(BadRequestError) as caught:
        client.chat.completions.create(
            model="colours", messages=ASKED, response_format=FORMAT, extra_body={limit: 3}
        )
    assert caught.value.param == limit
    assert "the limit is 3: raise the limit" in caught.value.message
