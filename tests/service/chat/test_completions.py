"""Plain completions, by OpenAI's SDK: prompts are sent as they are."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from openai import OpenAI

from llama_index_finetune_structured import LoraLLM
from tests.service.chat.chat_server import ChatServer

PROMPT = "<|im_start|>user\nDescribe colour 1.<|im_end|>\n<|im_start|>assistant\n"


def test_completions_of_several_prompts_are_those_of_the_llm_whole_and_in_pieces(
    client: OpenAI, tiny: LoraLLM
) -> None:
    prompts = [PROMPT, "Red is"]
    own = [tiny.complete(prompt, formatted=True, max_tokens=9) for prompt in prompts]
    asked: Any = {"model": "tiny", "prompt": prompts, "max_tokens": 9, "n": 2}
    reply = client.completions.create(**asked)
    assert [choice.text for choice in reply.choices] == [own[0].text] * 2 + [own[1].text] * 2
    assert [choice.finish_reason for choice in reply.choices[::2]] == [
        one.raw["finish_reason"] for one in own
    ]
    assert reply.usage is not None
    assert reply.usage.prompt_tokens == sum(one.raw["usage"]["prompt_tokens"] for one in own)
    texts, reasons = [""] * 4, [""] * 4
    chunks = list(client.completions.create(stream=True, stream_options={"include_usage": True}, **asked))
    for choice in (choice for chunk in chunks for choice in chunk.choices):
        texts[choice.index] += choice.text
        reasons[choice.index] += choice.finish_reason or ""
    assert texts == [choice.text for choice in reply.choices]
    assert reasons == [choice.finish_reason for choice in reply.choices]
    assert chunks[-1].usage == reply.usage


def test_logprobs_and_stop_texts(client: OpenAI) -> None:
    asked: Any = {"model": "tiny", "prompt": "Red is", "max_tokens": 12, "logprobs": 2}
    choice = client.completions.create(**asked).choices[0]
    told = choice.logprobs
    assert told is not None
    assert "".join(told.tokens or ()).startswith(choice.text[:2])
    assert len(told.tokens or ()) == len(told.token_logprobs or ()) == len(told.text_offset or ()) == 12
    assert all(len(one) <= 2 for one in told.top_logprobs or ())
    stop = choice.text[-1]
    assert stop != "\N{REPLACEMENT CHARACTER}"
    stopped = client.completions.create(stop=stop, **asked).choices[0]
    assert (stopped.text, stopped.finish_reason) == (choice.text[: choice.text.find(stop)], "stop")


REFUSED: dict[str, Any] = {
    "echo": {"echo": True},
    "suffix": {"suffix": "x"},
    "best_of": {"best_of": 3},
    "prompt": {"prompt": [1, 2, 3]},
    "n": {"prompt": ["a"] * 100, "n": 2},
    "logprobs": {"logprobs": 6},
    "logit_bias": {"logit_bias": {"1": 1}},
    "no_such_field": {"no_such_field": 1},
}


@pytest.mark.parametrize("field", REFUSED)
def test_a_field_that_is_not_supported_is_named(field: str, chat_server: ChatServer) -> None:
    body = {"model": "tiny", "prompt": "a", **REFUSED[field]}
    reply = httpx.post(f"{chat_server.url}/completions", json=body, timeout=60)
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == field
