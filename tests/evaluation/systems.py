"""Small real LlamaIndex LLMs and examples, shared by the evaluation's tests."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse, LLMMetadata
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.llms import CustomLLM
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from pydantic import BaseModel, Field, PrivateAttr

from llama_index_finetune_structured import Example, Message, Scorecard, compare

dispatcher = get_dispatcher(__name__)


class Parameter(BaseModel):
    name: str
    type: str


class Card(BaseModel):
    """How to call a function."""

    function: str
    parameters: list[Parameter] = Field(default_factory=list)
    returns: str | None = None


def card(function: str = "f", **fields: Any) -> dict[str, Any]:
    return Card(function=function, **fields).model_dump()


def example(question: str, gold: dict[str, Any], **fields: Any) -> Example:
    defaults: dict[str, Any] = {
        "messages": (Message(role="system", content="Cards."), Message(role="user", content=question)),
        "answer": Message(role="assistant", content=json.dumps(gold)),
        "answer_schema": Card.model_json_schema(),
        "schema_name": "Card",
        "query": question,
    }
    return Example(**(defaults | fields))


class StructuredAnswerEvent(BaseEvent):
    """The event that a local LLM emits for a constrained answer."""

    bound_hits: list[str] = Field(default_factory=list)
    retries: int = 0

    @classmethod
    def class_name(cls) -> str:
        return "StructuredAnswerEvent"


class ScriptedLLM(CustomLLM):
    """Answers with the value of the first key that the prompt's text contains; an exception is raised."""

    script: dict[str, Any]
    bound_hits: dict[str, list[str]] = Field(default_factory=dict)
    retries: dict[str, int] = Field(default_factory=dict)
    name: str = "scripted"
    wait_s: float = 0.0
    _prompts: list[str] = PrivateAttr(default_factory=list)
    _running: int = PrivateAttr(default=0)
    _most_running: int = PrivateAttr(default=0)

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(is_chat_model=True, model_name=self.name)

    @property
    def prompts(self) -> list[str]:
        return self._prompts

    @property
    def most_running(self) -> int:
        return self._most_running

    def _answer(self, prompt: str) -> str:
        self._prompts.append(prompt)
        for key, answer in self.script.items():
            if key in prompt:
                if key in self.bound_hits or key in self.retries:
                    hits, retries = self.bound_hits.get(key, []), self.retries.get(key, 0)
                    dispatcher.event(StructuredAnswerEvent(bound_hits=hits, retries=retries))
                if isinstance(answer, BaseException):
                    raise answer
                return answer if isinstance(answer, str) else json.dumps(answer)
        return "I do not know."

    @llm_completion_callback()
    def complete(self, prompt: str, **_: Any) -> CompletionResponse:
        return CompletionResponse(text=self._answer(prompt))

    @llm_completion_callback()
    def stream_complete(self, prompt: str, **_: Any) -> Any:
        raise NotImplementedError

    @llm_chat_callback()
    async def achat(self, messages: Any, **_: Any) -> ChatResponse:
        self._running += 1
        self._most_running = max(self._most_running, self._running)
        try:
            await asyncio.sleep(self.wait_s)
            text = self._answer("\n".join(str(message.content) for message in messages))
        finally:
            self._running -= 1
        return ChatResponse(message=ChatMessage(role="assistant", content=text))


ALPHA = card("alpha", parameters=[{"name": "n", "type": "int"}], returns="Graph")
BETA = card("beta", parameters=[{"name": "G", "type": "Graph"}, {"name": "k", "type": "int"}])
DATA = [example("How do I call alpha?", ALPHA), example("How do I call beta?", BETA)]


def quiet(*args: Any, **kwargs: Any) -> Scorecard:
    return compare(*args, show_progress=False, **kwargs)
