"""FinetuneDataset: labelled Examples in memory, and what is done to them before training."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

from pydantic import BaseModel

from ..errors import ConfigurationError, DatasetError
from ..example import Example
from ..formats.preferences import preference_lines
from ..formats.reading import read_examples
from ..formats.registry import training_lines
from ..jsonl import write_lines
from ..jsonl_store import shards_of
from .labels import Conversation, label
from .leakage import LeakageReport, find_leaks
from .revalidation import Revalidation, revalidate
from .splits import GroupBy, assign
from .summary import DatasetSummary, summarise

__all__ = ["FinetuneDataset"]

_log = logging.getLogger(__name__)


class FinetuneDataset:
    """An immutable sequence of Examples: what every engine trains on and the scorecard asks.

    ``duplicates_removed`` counts what :meth:`deduplicate` left out on the way here; ``leakage`` is what
    :meth:`split` found of train in this validation side.
    """

    leakage: LeakageReport | None = None

    def __init__(self, examples: Iterable[Example], *, duplicates_removed: int = 0) -> None:
        self._examples = tuple(examples)
        self.duplicates_removed = duplicates_removed

    @classmethod
    def load(cls, path: str | Path) -> FinetuneDataset:
        """Read canonical Examples or OpenAI chat lines, told apart line by line.

        A capture's other shards are merged in. Raises DatasetError with ``file:line`` at the first line
        that does not fit, or where there is no line at all.
        """
        examples = tuple(read_examples(Path(path), torn_from=2))
        if not examples:
            raise DatasetError(f"{path}: no examples in the file; capture some, or give another path")
        return cls(examples)

    @classmethod
    def from_pairs(
        cls,
        pairs: Iterable[tuple[Conversation, Any]],
        *,
        output_cls: type[BaseModel] | None = None,
        schema: dict[str, Any] | None = None,
        system_prompt: str | None = None,
        document_ids: Sequence[str] | None = None,
    ) -> FinetuneDataset:
        """Take (input, answer) pairs that are already labelled.

        An input is the user's text or a list of messages; an answer a Pydantic object, a dict or list, or
        text. With ``output_cls`` or ``schema`` each answer is validated and kept as compact JSON, keys in
        the order of the fields; a Pydantic answer brings its own class where neither is given. The schema
        is kept beside the messages (transport "json_schema"), not written into them: rendering does that.
        ``document_ids``, one a pair, are what ``split(group_by="document")`` keeps together.
        Raises DatasetError naming the row.
        """
        examples = label(pairs, output_cls, schema, system_prompt, document_ids)
        if not examples:
            raise DatasetError("from_pairs: no pairs were given; give at least one (input, answer)")
        return cls(examples)

    def save(self, path: str | Path, format: str | None = None) -> Path:
        """Write one JSON line an example, whole or not at all: a failed save leaves an older file as it was.

        ``format`` None keeps everything (canonical Examples). Training files: "openai", "openai-functions"
        (the legacy form), "gradient", "gradient-structured" (prompts not trained on), "trl-messages",
        "trl-prompt-completion"; "query-response" is LlamaIndex's QueryResponseDataset. Raises
        ConfigurationError where shards of a capture lie beside ``path``: they would be read with it.
        """
        if beside := [file.name for file in shards_of(path) if file != Path(path)]:
            raise ConfigurationError(f"{path}: a capture of several files ({beside[0]}); give another path")
        lines = (e.to_json() for e in self) if format is None else training_lines(self, format)
        return write_lines(Path(path), lines)

    def save_preferences(self, path: str | Path, rejects: str | Path | Iterable[Example]) -> Path:
        """Write OpenAI's preference (DPO) lines: our answers preferred over the rejected ones.

        ``rejects``: a capture's ``*.rejects.jsonl``, or Examples whose answers were refused. Raises
        DatasetError where no rejected answer shares its prompt with one of ours.
        """
        return write_lines(Path(path), preference_lines(self, rejects))

    def __iter__(self) -> Iterator[Example]:
        return iter(self._examples)

    def __len__(self) -> int:
        return len(self._examples)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> FinetuneDataset: ...
    def __getitem__(self, index: int | slice) -> Example | FinetuneDataset:
        if isinstance(index, slice):
            return FinetuneDataset(self._examples[index])
        return self._examples[index]

    def __repr__(self) -> str:
        return f"FinetuneDataset({len(self)} examples)"

    def split(
        self,
        fraction: float = 0.7,
        group_by: GroupBy = None,
        seed: int = 0,
        *,
        check_leakage: bool = True,
    ) -> tuple[FinetuneDataset, FinetuneDataset]:
        """(train, validation), whole groups on one side, decided by a hash of seed and group.

        A group goes to train when its hash, read as a number from 0 to 1, is below ``fraction``: so the
        order of rows does not matter and rows added later move none of the older ones. The share is met on
        average, not exactly; where one side would stay empty, the group nearest to the border is moved
        there. ``group_by``: None keeps rows of one question together; "document" goes by ``document_id``;
        a callable names the group of an Example. Raises DatasetError with fewer than two groups.

        Validation rows that stand almost word for word in train are logged as a warning and kept in
        ``validation.leakage``, unless ``check_leakage`` is off.
        """
        in_train = assign(self._examples, fraction, group_by, seed)
        sides: dict[bool, list[Example]] = {True: [], False: []}
        for example, train in zip(self._examples, in_train, strict=True):
            name = "train" if train else "validation"
            sides[train].append(example.model_copy(update={"split": name}))
        train_side, validation = FinetuneDataset(sides[True]), FinetuneDataset(sides[False])
        if check_leakage:
            validation.leakage = find_leaks(sides[True], sides[False])
            if validation.leakage.leaks:
                _log.warning("split: %s", validation.leakage)
        return train_side, validation

    def deduplicate(self) -> FinetuneDataset:
        """Keep the first of the examples that are equal in all that is learned (same ``id``)."""
        unique: dict[str, Example] = {}
        for example in self._examples:
            unique.setdefault(example.id, example)
        removed = self.duplicates_removed + len(self) - len(unique)
        return FinetuneDataset(unique.values(), duplicates_removed=removed)

    def revalidate(
        self, output_cls: type[BaseModel], migrate: Callable[[Any], Any] | None = None
    ) -> Revalidation:
        """Hold every answer against a changed model: which rows still hold, were migrated, are lost.

        ``migrate`` takes the old answer (parsed JSON) of a row that no longer holds and gives the new one,
        or None to give it up. Kept rows carry the new schema, in the prompt too where it was spelled out.
        """
        return revalidate(self._examples, output_cls, migrate)

    def summary(self) -> DatasetSummary:
        """Counts worth a look before paying for training; print it."""
        return summarise(self._examples, self.duplicates_removed)
