"""The adapter that a run goes on from: what it decides of the run, and which of its own rows are replayed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..dataset import FinetuneDataset
from ..dataset.checks.counterfactuals import rows_with, rows_without
from ..dataset.checks.rows import as_source, parsed_rows
from ..dataset.generate.recipe import prompted_as
from ..errors import ConfigurationError
from ..example import Example, content_hash
from ..json_schema import find_error
from ..local.model.adapter import AdapterCard, find_adapter, read_matching_card
from ..local.model.base_models import BaseModelFiles
from ..local.model.lora_files import LoraFile, read_lora_config
from ..local.model.lora_weights import load_start
from ..local.model.prompts import DEFAULT_SCHEMA_PROMPT, PromptForm, prompt_form_of
from ..local.schema.bounds import schema_key
from ..local.train.settings import LoraSettings
from ..printable import package_logger

__all__ = ["REPLAY_SHARE", "ROWS_FILE", "StartAdapter"]

_log = package_logger(__name__)
ROWS_FILE = "train.jsonl"
"""The file of a run's folder with the rows that it was trained on."""
REPLAY_SHARE = 0.5
"""Share of a run's rows that are old ones. Chosen: as many as new rows."""


@dataclass(frozen=True)
class StartAdapter:
    """An adapter, read: its folder, its card, what its configuration says, and the rows that it was trained on.

    ``old``: empty where they are not known.
    """

    folder: Path
    card: AdapterCard
    config: LoraFile
    old: tuple[Example, ...]

    @classmethod
    def of(
        cls,
        folder: str | Path | None,
        base: BaseModelFiles,
        replay: FinetuneDataset | str | Path | Iterable[Example] | None,
        share: float,
    ) -> StartAdapter | None:
        """The adapter of a folder, or of a run's folder, with the rows of ``replay`` or else of the run; None for None.

        Raises ConfigurationError where it is none, is damaged, or was trained on another base, where ``share`` is out
        of range, or ``replay`` has no adapter; DatasetError where the rows cannot be read.
        """
        if not 0 <= share < 1:
            raise ConfigurationError(f"replay_share: {share!r}, expected a number from 0 to below 1")
        if folder is None:
            if replay is not None:
                raise ConfigurationError(
                    "replay: needs start_from=, the adapter that was trained on these rows"
                )
            return None
        adapter = find_adapter(Path(folder))
        card = read_matching_card(adapter, base)
        rows = adapter.parent / ROWS_FILE
        if replay is None and adapter.name == "adapter" and rows.is_file():
            replay = rows
        source = () if replay is None else as_source(replay)
        old = parsed_rows(source) if source != () else ()
        examples = (row.content for row in old)
        return cls(
            adapter,
            card,
            read_lora_config(adapter),
            tuple(each for each in examples if isinstance(each, Example)),
        )

    @property
    def sha256(self) -> str:
        """Hash of the adapter's weights and configuration."""
        return content_hash(dict(self.card.files))

    def settings(self, config: LoraSettings | None) -> LoraSettings:
        """The settings of a run that goes on from it: those that decide the shape of LoRA are the adapter's.

        Raises ConfigurationError where ``config`` sets another value for one of them.
        """
        config = config or LoraSettings()
        layers = self.config.layers_to_transform
        own: dict[str, Any] = {
            "rank": self.config.r,
            "alpha": self.config.lora_alpha,
            "upper_layers": None if layers is None else len(layers),
            "quantization": self.card.quantization,
            "thinking": "keep" if self.card.thinking else "drop",
        }
        given = {name: getattr(config, name) for name in own if name in config.model_fields_set}
        differing = [n for n, value in given.items() if value is not None and value != own[n]]
        if differing:
            found = ", ".join(f"{name} {given[name]} (the adapter has {own[name]})" for name in differing)
            raise ConfigurationError(
                f"{self.folder}: training cannot go on from it with {found}: leave these settings out, or train "
                "from the base model"
            )
        return config.model_copy(update=own)

    def form(self, examples: Sequence[Example], config: LoraSettings) -> PromptForm:
        """The form of prompts: the adapter's, unless it left out the schema, and there are others to tell apart now."""
        new = prompt_form_of(examples, *config.prompts)
        schema_prompt = config.schema_prompt or self.card.schema_prompt
        if config.schema_prompt is None and schema_prompt == "none" and len(self._keys(examples)) > 1:
            schema_prompt = DEFAULT_SCHEMA_PROMPT
        return new._replace(
            schema_prompt=schema_prompt,
            reads_twice=self.card.reads_twice,
            tool_prompt=config.tool_prompt or self.card.tool_prompt,
        )

    def _keys(self, examples: Iterable[Example]) -> set[str]:
        schemas = [*self.card.schemas, *(row.answer_schema for row in examples if row.answer_schema)]
        return {schema_key(schema) for schema in schemas}

    def old_rows(
        self, new: Sequence[Example], share: float, seed: int
    ) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
        """The old rows that are trained on again, so that old and new ones are in proportion ``share``; and the others.

        Chosen by hash, so that the order of rows does not matter. Old rows among the new ones count as replayed. Where
        the new rows have one schema that takes the answers of old ones as they are, those are asked for by it: else
        all answers to it would have its new fields, and the model would invent them. None for ``share`` 0.
        """
        if not share:
            return (), ()
        if not self.old:
            _log.warning(
                "%s: the rows that it was trained on are not known, so none are replayed, and what it learned may be "
                "forgotten; pass them as replay=",
                self.folder,
            )
            return (), ()
        schemas = {schema_key(row.answer_schema): row for row in new if row.answer_schema}
        only = next(iter(schemas.values())) if len(schemas) == 1 else None
        old = [_asked_as(row, only) for row in self.old]
        ids, known = {row.id for row in new}, {row.id for row in old}
        again = sum(row.id in known for row in new)
        wanted = round(share / (1 - share) * (len(new) - again)) - again
        rest = {row.id: row for row in old if row.id not in ids}
        by_hash = sorted(rest.values(), key=lambda row: content_hash([seed, row.id]))
        wanted = max(0, wanted)
        return tuple(by_hash[:wanted]), tuple(by_hash[wanted:])

    def rows_of_new_fields(self, new: Sequence[Example], old: Iterable[Example]) -> list[Example]:
        """Rows that teach when to fill the fields that the adapter does not know: made of new rows, and of old ones.

        New rows come a second time without the lines of such a field. Old rows leave it out too, but differ in more
        than that, such as in their numbers and dates: as many of them come with these lines.
        """
        known = {name for schema in self.card.schemas for name in _properties(schema)}
        fields = sorted({name for row in new for name in _properties(row.answer_schema)} - known)
        return [*rows_without(new, fields), *rows_with(new, fields, old)] if known else []

    def load_into(self, model: Any) -> None:
        """Set the LoRA weights of a PEFT model to the adapter's.

        Raises ConfigurationError where LoRA adapts other weights of the model, or the adapter's are not finite.
        """
        load_start(model, self.folder, self.config)

    def carried(self, card: AdapterCard) -> AdapterCard:
        """The card of the run's adapter, with what only the old rows showed."""
        old = self.card
        schemas = {schema_key(schema): schema for schema in (*old.schemas, *card.schemas)}
        return card.model_copy(
            update={
                "bounds": card.bounds.merged(old.bounds),
                "schemas": tuple(schemas.values()),
                "schema_tokens": max(card.schema_tokens or 0, old.schema_tokens or 0),
                "longest_answer_tokens": max(card.longest_answer_tokens, old.longest_answer_tokens),
                "longest_reasoning_tokens": max(card.longest_reasoning_tokens, old.longest_reasoning_tokens),
                "list_rules": {**old.list_rules, **card.list_rules},
                "taggers": {**old.taggers, **card.taggers},
                "answer_classes": {**old.answer_classes, **card.answer_classes},
                "windows": card.windows or old.windows,
            }
        )


def _properties(schema: Mapping[str, Any] | None) -> Iterable[str]:
    found = (schema or {}).get("properties")
    return found if isinstance(found, Mapping) else ()


def _asked_as(old: Example, new: Example | None) -> Example:
    """The old row with the schema of the new one, where its answer fits that; else as it is.

    Its prompt is made as that of the new one: otherwise a class's new name in it would tell old rows from new ones.
    """
    if new is None or new.answer_schema is None or old.answer_schema is None:
        return old
    # A schema in the text of messages, or in a tool, is no part that could be exchanged.
    if not old.transport == new.transport == "json_schema":
        return old
    if find_error(new.answer_schema, old.answer_object()) is not None:
        return old
    update = {name: getattr(new, name) for name in ("answer_schema", "schema_name", "answer_class")}
    return Example(**{**dict(prompted_as(old, new)), **update})
