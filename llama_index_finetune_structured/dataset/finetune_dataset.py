"""FinetuneDataset: labelled Examples in memory, loaded, split, deduplicated and saved before training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, overload

from pydantic import BaseModel

from ..data_frames import data_frame
from ..errors import ConfigurationError, DatasetError
from ..example import Example, Usage
from ..formats.preferences import preference_lines
from ..formats.reading import read_examples
from ..formats.registry import training_lines
from ..jsonl import save_lines
from ..jsonl_store import shards_of
from ..notebook_html import escape, plain_table
from ..printable import package_logger
from .labels import Conversation, labelled_examples
from .leakage import LeakageReport, find_leaks
from .revalidation import Revalidation, revalidate
from .splits import GroupBy, document_of, train_mask

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["DatasetSummary", "FinetuneDataset"]

_log = package_logger(__name__)
_SHOWN = 30  # chosen: examples in a notebook, of which ten are unfolded
_COLUMNS = (
    "id", "question", "answer", "document_id", "split", "schema_name", "transport", "query", "model",
    "prompt_tokens", "completion_tokens", "messages",
)  # fmt: skip


@dataclass(frozen=True)
class DatasetSummary:
    """Counts over a data set.

    Attributes:
        examples: Number of examples.
        with_schema: Examples that have a schema.
        schemas: Different schemas.
        transports: Transport -> examples.
        documents: Different documents that are named.
        duplicates: Examples that repeat an earlier one.
        duplicates_removed: Examples that ``deduplicate`` has left out.
        prompt_chars: Characters of the prompts: (least, median, most).
        answer_chars: Characters of the answers: (least, median, most).
    """

    examples: int
    with_schema: int
    schemas: int
    transports: dict[str, int]
    documents: int
    duplicates: int
    duplicates_removed: int
    prompt_chars: tuple[int, int, int]
    answer_chars: tuple[int, int, int]

    def __str__(self) -> str:
        transports = ", ".join(f"{name} {count}" for name, count in sorted(self.transports.items())) or "none"
        rows = [
            ("examples", f"{self.examples} ({transports})"),
            ("with a schema", f"{self.with_schema} ({self.schemas} different)"),
            ("documents", str(self.documents)),
            ("duplicates", f"{self.duplicates} in it, {self.duplicates_removed} removed"),
            ("prompt", "{} / {} / {} characters (least, median, most)".format(*self.prompt_chars)),
            ("answer", "{} / {} / {} characters".format(*self.answer_chars)),
        ]
        return "\n".join(f"{name:<14} {value}" for name, value in rows)


class FinetuneDataset:
    """An immutable sequence of Examples, for every engine to train on and for evaluation.

    Args:
        examples: The examples, in the order in which they are kept.
        duplicates_removed: Number of examples that ``deduplicate`` has left out already. Kept as an attribute.

    Attributes:
        leakage: Of the validation side of a ``split``, its near-duplicates in train; else None.
    """

    leakage: LeakageReport | None = None

    def __init__(self, examples: Iterable[Example], *, duplicates_removed: int = 0) -> None:
        self._examples = tuple(examples)
        self.duplicates_removed = duplicates_removed

    @classmethod
    def load(cls, path: str | Path) -> FinetuneDataset:
        """Read canonical Examples, chat lines of OpenAI and TRL, and TRL's prompts with completions.

        The form is recognised line by line; the local engine and ``check(path)`` read the same forms.

        Args:
            path: JSON Lines file; the other shards of a capture are merged in.

        Raises:
            DatasetError: At the first line that does not fit, named as ``file:line``, or where there are no lines
                or the file cannot be read.
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

        With ``output_cls`` or ``schema`` each answer is validated and stored as compact JSON, keys in the order of
        the fields; where neither is given, a Pydantic answer is stored with its own class. The schema is stored
        beside the messages (transport "json_schema"); rendering writes it into them.

        Args:
            pairs: An input is the user's text or a list of messages; an answer a Pydantic object, a dict or list,
                or text.
            output_cls: Class of all answers.
            schema: JSON schema of all answers, instead of ``output_cls``.
            system_prompt: System message put before every input. None: none.
            document_ids: One per pair, the groups of ``split(group_by="document")``.

        Raises:
            DatasetError: A row does not fit, which the message names; there are no pairs, or not one document id
                per pair.
            ConfigurationError: ``output_cls`` and ``schema`` are both given, or ``schema`` is not a valid schema.
        """
        examples = labelled_examples(pairs, output_cls, schema, system_prompt, document_ids)
        if not examples:
            raise DatasetError("from_pairs: no pairs were given; give at least one (input, answer)")
        return cls(examples)

    def save(self, path: str | Path, format: str | None = None) -> Path:
        """Write one JSON line per example, atomically: a failed save leaves an older file unchanged.

        Args:
            path: File to write; a missing folder is created.
            format: None keeps every field (canonical Examples). Training files: "openai", "openai-functions"
                (the legacy form), "gradient", "gradient-structured" (prompts not trained on), "trl-messages",
                "trl-prompt-completion"; "query-response" is LlamaIndex's QueryResponseDataset.

        Returns:
            ``path``.

        Raises:
            ConfigurationError: The format is unknown, or shards of a capture lie beside ``path``: they would be
                read with it. Or the file cannot be written.
            DatasetError: The format cannot express an example, which the message names.
        """
        if shards := [file.name for file in shards_of(path) if file != Path(path)]:
            raise ConfigurationError(f"{path}: a capture of several files ({shards[0]}); give another path")
        lines = (e.to_json() for e in self) if format is None else training_lines(self, format)
        return save_lines(Path(path), lines)

    def save_preferences(self, path: str | Path, rejects: str | Path | Iterable[Example]) -> Path:
        """Write OpenAI's preference (DPO) lines: this data set's answers preferred over rejected ones.

        Args:
            path: File to write, atomically.
            rejects: A capture's ``*.rejects.jsonl``, or Examples whose answers were rejected.

        Returns:
            ``path``.

        Raises:
            ConfigurationError: The file cannot be written.
            DatasetError: No rejected answer has the same prompt as one of these examples, or the rejects cannot be
                read.
        """
        return save_lines(Path(path), preference_lines(self, rejects))

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
        """(train, validation): each group as a whole on one side, by a hash of ``seed`` and group.

        A group goes to train when its hash, as a number from 0 to 1, is below ``fraction``: the order of rows does
        not matter, and rows added later move none of the older ones.

        Args:
            fraction: Share of the groups that go to train, between 0 and 1. It is met on average, not exactly;
                where one side would be empty, the group nearest to the border is moved there.
            group_by: None keeps rows of one question together, and the rows of one conversation with an agent;
                "document" those of one ``document_id`` (or, where an example has none, of its first source that
                names one); a callable names the group of an Example.
            seed: Another seed gives another split.
            check_leakage: Whether to look for validation rows that are near-duplicates of train rows; they are
                logged as a warning and reported in ``validation.leakage``.

        Raises:
            ConfigurationError: ``fraction`` or ``group_by`` is not one of these values.
            DatasetError: There are fewer than two groups, or an example has no group.
        """
        in_train = train_mask(self._examples, fraction, group_by, seed)
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
        """Keep the first of the examples with the same ``Example.id``."""
        unique: dict[str, Example] = {}
        for example in self._examples:
            unique.setdefault(example.id, example)
        removed = self.duplicates_removed + len(self) - len(unique)
        return FinetuneDataset(unique.values(), duplicates_removed=removed)

    def revalidate(
        self, output_cls: type[BaseModel], migrate: Callable[[Any], Any] | None = None
    ) -> Revalidation:
        """Validate every answer against a changed model: rows are still valid, migrated or lost.

        Kept rows have the new schema, also where the prompt contains it.

        Args:
            output_cls: The changed class.
            migrate: Takes the old answer (parsed JSON) of a row that is no longer valid and returns the new one, or
                None to drop the row. An error that it raises loses the row. None: no row is migrated.
        """
        return revalidate(self._examples, output_cls, migrate)

    def to_pandas(self) -> DataFrame:
        """A DataFrame with a row for each example; ``question`` is the last user message, ``messages`` has all.

        Raises:
            ConfigurationError: pandas is not installed.
        """
        return data_frame(map(_row, self._examples), _COLUMNS)

    def _repr_html_(self) -> str:
        """The first examples, and the counts, for notebooks; of a large data set, without reading all of it."""
        columns = ("question", "answer", "document_id", "schema_name", "split")
        shown = [_row(example) for example in self._examples[:_SHOWN]]
        rows = [[str(row[name] if row[name] is not None else "") for name in columns] for row in shown]
        more = len(self) - len(shown)
        rest = f"<p>and {more} more; to_pandas() has all</p>" if more else ""
        return f"<p>{escape(repr(self))}</p>{plain_table([*columns], rows)}{rest}"

    def summary(self) -> DatasetSummary:
        """Counts of examples, schemas, documents, duplicates and lengths; print it before training."""
        return _summary(self._examples, self.duplicates_removed)


def _row(example: Example) -> dict[str, Any]:
    """One example as a row of a table."""
    users = [message for message in example.messages if message.role == "user"]
    usage = example.usage or Usage()
    return {
        "id": example.id,
        "question": (users or list(example.messages))[-1].shown(),
        "answer": example.answer.shown(),
        "document_id": example.document_id,
        "split": example.split,
        "schema_name": example.schema_name,
        "transport": example.transport,
        "query": example.query,
        "model": example.model,
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "messages": [message.wire() for message in example.messages],
    }


def _summary(examples: Sequence[Example], duplicates_removed: int) -> DatasetSummary:
    return DatasetSummary(
        examples=len(examples),
        with_schema=sum(e.answer_schema is not None for e in examples),
        schemas=len({e.schema_hash for e in examples if e.answer_schema is not None}),
        transports=dict(Counter(e.transport for e in examples)),
        documents=len({document_of(e) for e in examples} - {None}),
        duplicates=len(examples) - len({e.id for e in examples}),
        duplicates_removed=duplicates_removed,
        prompt_chars=_least_median_most([_prompt_chars(e) for e in examples]),
        answer_chars=_least_median_most([sum(map(len, e.answer_texts())) for e in examples]),
    )


def _least_median_most(lengths: list[int]) -> tuple[int, int, int]:
    return (min(lengths), round(median(lengths)), max(lengths)) if lengths else (0, 0, 0)


def _prompt_chars(example: Example) -> int:
    contents = [m.content or "" for m in example.messages]
    return sum(len(content) if isinstance(content, str) else len(str(content)) for content in contents)
