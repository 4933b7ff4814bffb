"""A teacher fills a schema from whole documents; its answers are stored, and asked again where a text has changed."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from llama_index.core.llms import LLM
from llama_index.core.prompts import ChatPromptTemplate
from pydantic import BaseModel, RootModel, create_model

from ...answer_values import trained_value
from ...errors import StructuredAnswerError
from ...example import Example, content_hash
from ...jsonl import one_line_reason
from ..windows import text_parts
from .document_rows import DocumentRows, is_lists_alone, length_reason
from .llm_calls import CallPolicy, LlmCall, LlmCalls
from .readers import DocumentText

__all__ = ["TeacherLabels"]

_Span = tuple[int, int]


class TeacherLabels:
    """The teacher's rows of documents.

    ``made``: rows by document; ``failed`` and ``too_long``: what is wrong, by document; ``changed``: documents that
    have another text than when they were answered.
    """

    def __init__(
        self, rows: DocumentRows, path: str | os.PathLike[str] | None, policy: CallPolicy, most: int | None
    ) -> None:
        self._rows, self._path, self._policy, self._most = rows, path, policy, most
        self.made: dict[str, list[Example]] = {}
        self.failed: dict[str, str] = {}
        self.too_long: dict[str, str] = {}
        self.changed: tuple[str, ...] = ()
        self.paid = self.reused = 0

    async def ask(
        self, teacher: LLM, documents: Iterable[DocumentText], *, retry_failed: bool, show_progress: bool
    ) -> None:
        """Ask for the documents, each as a whole, or the parts of a long one."""
        places = {document.name: (document, self._parts(document)) for document in documents}
        store = LlmCalls(self._path, self._policy)
        calls: dict[str, LlmCall] = {}
        keys: dict[str, list[tuple[_Span | None, str]]] = defaultdict(list)
        for name, (document, parts) in places.items():
            for part in parts:
                key, call = self._call(teacher, document, part)
                calls[key] = call
                keys[name].append((part, key))
        self.changed = _changed(store, places, keys)
        self.reused = store.count_results(calls)
        await store.run(
            calls, retry_failed=retry_failed, description="documents", show_progress=show_progress
        )
        self.paid = store.paid
        for name, own in keys.items():
            self._take(places[name][0], own, store, teacher)

    def _parts(self, document: DocumentText) -> list[_Span | None]:
        if self._most is None or len(document.text) <= self._most:
            return [None]
        if is_lists_alone(self._rows.shape.schema or {}):
            return list(text_parts(document.text, self._most))
        self.too_long[document.name] = length_reason(len(document.text), self._most)
        return []

    def _call(self, teacher: LLM, document: DocumentText, part: _Span | None) -> tuple[str, LlmCall]:
        text = document.text if part is None else document.text[slice(*part)].strip()
        messages = [message.wire() for message in self._rows.messages(text)]
        key = content_hash([teacher.metadata.model_name, messages, self._rows.shape.schema])
        facts = {"document": document.name, "text": content_hash(document.text)}
        output_cls = self._rows.output_cls
        assert output_cls is not None  # checked where the teacher was given

        async def make() -> dict[str, Any]:
            return {"answer": await _filled(teacher, output_cls, self._rows.recipe.prompt(), text)}

        return key, LlmCall(teacher, document.name, facts, make)

    def _take(
        self, document: DocumentText, own: list[tuple[_Span | None, str]], store: LlmCalls, teacher: LLM
    ) -> None:
        rows = []
        for part, key in own:
            found = store.rows[key]
            try:
                if "error" in found:
                    error = found["error"]
                    raise ValueError(f"{error['type']}: {error['message']}")
                asked = document.text if part is None else document.text[slice(*part)]
                text = self._rows.answer_text(found["result"]["answer"], asked)
                rows.append(self._rows.row(document, text, model=teacher.metadata.model_name, span=part))
            except Exception as error:  # the user's validators may raise anything
                reason = f"the teacher gave no valid answer ({one_line_reason(error)})"
                self.failed[document.name] = f"{reason}; mend the cause and retry failed calls"
        if document.name not in self.failed and rows:
            self.made[document.name] = rows


def _changed(
    store: LlmCalls,
    places: dict[str, tuple[DocumentText, list[_Span | None]]],
    keys: dict[str, list[tuple[_Span | None, str]]],
) -> tuple[str, ...]:
    before = defaultdict[str, set[str]](set)
    for row in store.rows.values():
        before[str(row.get("document"))].add(str(row.get("text")))
    return tuple(
        name
        for name, (document, _) in places.items()
        if before.get(name)
        and content_hash(document.text) not in before[name]
        and any(key not in store.rows for _, key in keys[name])
    )


async def _filled(teacher: LLM, output_cls: type[BaseModel], prompt: ChatPromptTemplate, text: str) -> Any:
    """The teacher's answer as a JSON value. Providers take objects alone, so others are asked for inside of one."""
    asked: type[BaseModel] = output_cls
    if issubclass(output_cls, RootModel):
        fields: dict[str, Any] = {"answer": (output_cls.model_fields["root"].annotation, ...)}
        asked = create_model(f"{output_cls.__name__}Answer", __doc__=output_cls.__doc__, **fields)
    found = await teacher.astructured_predict(asked, prompt, context_str=text)
    if not isinstance(found, asked):
        raise StructuredAnswerError(f"expected {asked.__name__}, found {type(found).__name__}")
    value = trained_value(found)
    return value["answer"] if asked is not output_cls else value
