"""The card of the adapter of a run: what serving needs to prompt as in training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..answer_classes import is_importable
from ..example import Example
from ..json_schema import without_titles
from ..local.model.adapter import AdapterCard
from ..local.model.base_models import BaseModelFiles, context_window
from ..local.model.chat_template import chat_template, system_form, thinking_switches
from ..local.model.prompts import PromptForm, TokenRow, decided_form, schema_room
from ..local.schema.bounds import learn_bounds, schema_key
from ..local.train.settings import LoraSettings
from .training_rows import TrainingRows

__all__ = ["adapter_card"]


def adapter_card(
    base: BaseModelFiles,
    tokenizer: Any,
    data: TrainingRows,
    rows: Sequence[TokenRow],
    form: PromptForm,
    date: str | None,
    windows: int,
    settings: LoraSettings,
    fingerprint: str,
) -> AdapterCard:
    """The card of an adapter that was trained on ``data``, as ``rows``, on ``base``; the others as in the card."""
    schemas = {
        schema_key(example.answer_schema): without_titles(example.answer_schema)
        for example in data.examples
        if example.answer_schema is not None
    }
    form = decided_form(tokenizer, form, schemas.values())
    return AdapterCard(
        base_model=base.name,
        base_sha256=base.sha256,
        base_files=dict(base.files),
        bounds=learn_bounds(data.examples),
        chat_prompts=2 * sum(map(_leads_with_system, data.examples)) >= len(data.examples),
        longest_answer_tokens=max(len(row.answer) - row.reasoning for row in rows),
        longest_reasoning_tokens=max(row.reasoning for row in rows),
        thinking_switches=tuple(thinking_switches(chat_template(tokenizer))),
        rows=len(data.examples),
        fingerprint=fingerprint,
        context_window=context_window(base),
        prompt_date=date,
        schemas=tuple(schemas.values()),
        schema_tokens=max((schema_room(tokenizer, schema, form) for schema in schemas.values()), default=0),
        system_messages=system_form(tokenizer),
        **form._asdict(),
        list_rules=data.list_rules,
        windows=windows,
        quantization=settings.quantization,
        answer_classes={
            schema_key(example.answer_schema): example.answer_class
            for example in data.examples
            if example.answer_schema is not None and is_importable(example.answer_class or "")
        },
    )


def _leads_with_system(example: Example) -> bool:
    return example.messages[0].role in ("system", "developer")
