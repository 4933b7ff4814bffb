"""FollowingLoraLLM: the version of a run that serves, as a LlamaIndex LLM that changes with it while it runs."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
)
from llama_index.core.llms.llm import LLM
from llama_index.core.prompts import BasePromptTemplate
from pydantic import BaseModel, Field, PrivateAttr

from ..forks import reset_after_fork
from ..local.model.adapter import find_adapter
from ..local.model.versions import POINTER
from ..printable import package_logger
from ..trust.calibration import Calibration
from .lora import LoraLLM
from .structured_lora import SchemaRoomLLM
from .tool_calls import ToolCallingLLM

__all__ = ["FollowingLoraLLM"]

_log = package_logger(__name__)
_SHARED = tuple(LLM.model_fields)
"""The fields of every LLM. LlamaIndex sets ``callback_manager`` on the object that it is given."""


class _Followed:
    """The LLM of a run's version. A deep copy is the same object; a pickled one loads again."""

    def __init__(self, run: Path, options: dict[str, Any]) -> None:
        self._run, self._options = run, options
        self._seen = self._stamp()
        self.llm = LoraLLM.from_adapter(run, **options)
        self.after_fork()
        reset_after_fork(self)

    def after_fork(self) -> None:
        """Make a new lock: a thread of the parent may have been loading."""
        self._loading = threading.Lock()

    @property
    def is_current(self) -> bool:
        """Whether the pointer is as it was last read."""
        return self._stamp() == self._seen

    def latest(self) -> LoraLLM:
        """The LLM of the version that serves; the one before while another call loads it, or where it cannot be."""
        stamp = self._stamp()  # before the file is read: a change in between is found by the next call
        if stamp != self._seen and self._loading.acquire(blocking=False):
            try:
                self._change()
                self._seen = stamp
            finally:
                self._loading.release()
        return self.llm

    def _change(self) -> None:
        try:
            if find_adapter(self._run) != self.llm.adapter:
                new = LoraLLM.from_adapter(self._run, **self._options)
                _ = new._loaded  # with its weights, which may be damaged
                self.llm = new
        except Exception as error:  # whatever is wrong with the new version, the old one answers
            _log.warning(
                "%s: the version that serves now cannot be loaded, and %s goes on answering: %s",
                self._run,
                self.llm.adapter,
                error,
            )

    def _stamp(self) -> tuple[int, ...] | None:
        """What differs after each replacement of the pointer."""
        try:
            found = os.stat(self._run / POINTER)
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino, found.st_size

    def __deepcopy__(self, _memo: Any) -> _Followed:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._run, self._options)


class FollowingLoraLLM(ToolCallingLLM, SchemaRoomLLM):
    """The version of a run that serves, as a ``LoraLLM`` that changes with it, without a restart.

    Each call looks whether ``improve`` or ``rollback`` has changed the version that serves. The first one that finds a
    new version loads it and is answered by it; calls in progress, and those made while it loads, end with the one
    before. Both are in memory then. A version that cannot be loaded is logged once as a warning, and the one before
    goes on answering.

    Args:
        **kwargs: The attributes below, attributes of ``LoraLLM`` such as ``temperature``, which override those of
            training for every version, and fields of LlamaIndex's ``LLM`` such as ``system_prompt``.

    Attributes:
        run: The folder of a run of ``tune``.
        options: The attributes of ``LoraLLM`` that were passed.

    Raises:
        ConfigurationError: The folder holds no finished run, or an argument is no attribute. Of a call: as ``LoraLLM``.
    """

    run: Path = Field(frozen=True, description="The folder of a run of tune().")
    options: dict[str, Any] = Field(
        default_factory=dict, frozen=True, description="Attributes of LoraLLM, for every version."
    )

    _followed: _Followed = PrivateAttr()

    def __init__(self, **kwargs: Any) -> None:
        own = {
            name: value for name, value in kwargs.items() if name in (*type(self).model_fields, "class_name")
        }
        options = {**kwargs.get("options", {}), **{name: kwargs[name] for name in kwargs.keys() - own.keys()}}
        super().__init__(**{**own, "options": options})
        self._followed = _Followed(Path(self.run).absolute(), options)

    @classmethod
    def class_name(cls) -> str:
        """The class's name in LlamaIndex's dumps."""
        return "following_lora_llm"

    @property
    def metadata(self) -> LLMMetadata:
        """As of ``LoraLLM``, of the version that answered last."""
        return self._shared(self._followed.llm).metadata

    @property
    def confidence(self) -> bool:
        """As of ``LoraLLM``, of the version that answered last."""
        return self._followed.llm.confidence

    @property
    def calibrations(self) -> Mapping[str, Calibration]:
        """As of ``LoraLLM``, of the version that answers the next call."""
        return self._latest().calibrations

    @property
    def trained_schemas(self) -> list[dict[str, Any]]:
        """As of ``LoraLLM``, of the version that answers the next call."""
        return self._latest().trained_schemas

    @property
    def answer_classes(self) -> dict[str, str]:
        """As of ``LoraLLM``, of the version that answers the next call."""
        return self._latest().answer_classes

    def metadata_for(self, output_cls: type[BaseModel]) -> LLMMetadata:
        """As of ``LoraLLM``, of the version that answered last.

        Args:
            output_cls: Class of the answers.
        """
        return self._shared(self._followed.llm).metadata_for(output_cls)

    def _latest(self) -> LoraLLM:
        return self._shared(self._followed.latest())

    async def _alatest(self) -> LoraLLM:
        """As ``_latest``; a version is loaded in a thread."""
        return self._latest() if self._followed.is_current else await asyncio.to_thread(self._latest)

    def _shared(self, llm: LoraLLM) -> LoraLLM:
        """A version's LLM, with this object's fields of every LLM as they are now."""
        for name in _SHARED:
            if getattr(llm, name) is not (value := getattr(self, name)):
                setattr(llm, name, value)
        return llm

    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """The answer to messages."""
        answer: ChatResponse = self._latest().chat(messages, **kwargs)
        return answer

    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """The answer to messages."""
        answer: ChatResponse = await (await self._alatest()).achat(messages, **kwargs)
        return answer

    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """The answer to messages, as a stream."""
        answer: ChatResponseGen = self._latest().stream_chat(messages, **kwargs)
        return answer

    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """The answer to messages, as a stream."""
        answer: ChatResponseAsyncGen = await (await self._alatest()).astream_chat(messages, **kwargs)
        return answer

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """The answer to a prompt."""
        answer: CompletionResponse = self._latest().complete(prompt, formatted, **kwargs)
        return answer

    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """The answer to a prompt."""
        answer: CompletionResponse = await (await self._alatest()).acomplete(prompt, formatted, **kwargs)
        return answer

    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """The answer to a prompt, as a stream."""
        answer: CompletionResponseGen = self._latest().stream_complete(prompt, formatted, **kwargs)
        return answer

    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseAsyncGen:
        """The answer to a prompt, as a stream."""
        answer: CompletionResponseAsyncGen = await (await self._alatest()).astream_complete(
            prompt, formatted, **kwargs
        )
        return answer

    def structured_predict(
        self,
        output_cls: type[BaseModel],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> BaseModel:
        """The answer as ``output_cls``, both attempts by one version.

        Args:
            output_cls: Class of the answer.
            prompt: The prompt template.
            llm_kwargs: Keywords of the call, such as ``temperature``.
            **prompt_args: Variables of the template.
        """
        return self._latest().structured_predict(output_cls, prompt, llm_kwargs, **prompt_args)

    async def astructured_predict(
        self,
        output_cls: type[BaseModel],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> BaseModel:
        """``structured_predict()`` for asyncio; concurrent calls share batches.

        Args:
            output_cls: Class of the answer.
            prompt: The prompt template.
            llm_kwargs: Keywords of the call, such as ``temperature``.
            **prompt_args: Variables of the template.
        """
        llm = await self._alatest()
        return await llm.astructured_predict(output_cls, prompt, llm_kwargs, **prompt_args)

    def _structured_stream_call(
        self,
        output_cls: type[BaseModel],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Generator[Any, None, None]:
        return self._latest()._structured_stream_call(output_cls, prompt, llm_kwargs, **prompt_args)

    async def _structured_astream_call(
        self,
        output_cls: type[BaseModel],
        prompt: BasePromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> AsyncGenerator[Any, None]:
        llm = await self._alatest()
        return await llm._structured_astream_call(output_cls, prompt, llm_kwargs, **prompt_args)
