"""The card of the adapter of a run: what serving needs to prompt as in training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..answer_classes import is_importable
from ..errors import MissingDependencyError
from ..example import Example, json_span, loads
from ..json_schema import without_titles
from ..llms.answer_source import placed_trust
from ..local.model.adapter import AdapterCard
from ..local.model.base_models import BaseModelFiles, context_window
from ..local.model.chat_template import chat_template, system_form, thinking_switches
from ..local.model.prompts import PromptForm, TokenRow, decided_form, schema_room
from ..local.schema.bounds import AnswerBounds, learn_bounds, schema_key
from ..local.schema.grounding import GroundedSchema
from ..local.schema.message_texts import caller_contents, without_schema_text
from ..local.train.settings import LoraSettings
from ..printable import package_logger
from ..trust.answer_trust import Trust, trust_in_tokens
from ..trust.tagger import WordTagger, fitted_tagger
from .training_rows import TrainingRows

__all__ = ["adapter_card"]

_log = package_logger(__name__)


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
    bounds = learn_bounds(data.examples)
    return AdapterCard(
        base_model=base.name,
        base_sha256=base.sha256,
        base_files=dict(base.files),
        bounds=bounds,
        taggers=_taggers(data.examples, bounds),
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


def _taggers(examples: Sequence[Example], bounds: AnswerBounds) -> dict[str, WordTagger]:
    """By the key of each schema the tagger of its rows' words, where there is one; none without scikit-learn."""
    rows: dict[str, list[Example]] = {}
    for example in examples:
        if example.answer_schema is not None:
            rows.setdefault(schema_key(example.answer_schema), []).append(example)
    try:
        found = {key: _tagger(each, bounds.grounded.get(key), len(rows)) for key, each in rows.items()}
    except MissingDependencyError as error:
        _log.warning("answers are trusted by their tokens alone: %s", error)
        return {}
    return {key: tagger for key, tagger in found.items() if tagger is not None}


def _tagger(rows: Sequence[Example], grounded: GroundedSchema | None, taggers: int) -> WordTagger | None:
    system = grounded is not None and grounded.system_messages
    contents = [caller_contents(without_schema_text(row), system) for row in rows]

    def placed(number: int) -> Trust | None:
        answer = rows[number].answer_text()
        trust = trust_in_tokens(answer)
        return trust and placed_trust(trust, contents[number], grounded, loads(json_span(answer)))

    return fitted_tagger(contents, placed, taggers)


def _leads_with_system(example: Example) -> bool:
    return example.messages[0].role in ("system", "developer")
