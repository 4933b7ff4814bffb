"""One check of a source: every row's faults, token counts, and the walk of answers through their grammar."""

from __future__ import annotations

import contextlib
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import BaseModel

from ...answer_classes import class_of
from ...answer_values import class_schema
from ...errors import ConfigurationError, MissingDependencyError
from ...example import Example
from ...local.schema.bounds import AnswerTexts
from ...printable import package_logger
from .field_use import FieldUse
from .lines import LineReader, example_faults
from .problems import WARNINGS, Fault, Problem, refuse_errors
from .rows import CheckSource, SourceRow, empty, files_of, reader_of, source_name, source_rows, unreadable
from .targets import RENDER_ERRORS, TokenisedRow, TrainingTarget
from .values import value_faults

__all__ = ["SourceCheck", "trainable_rows"]

_log = package_logger(__name__)


@dataclass(slots=True)
class _CheckedRow:
    """One row's place, faults and counts; its tokens where they are still needed.

    ``key`` and ``answer``: of a row that is walked, the key of its schema and its trained tokens, four bytes each.
    """

    row: SourceRow
    faults: list[Fault]
    total: int = 0
    trained: int = 0
    reasoning: int = 0
    key: str = ""
    answer: array[int] | None = None
    tokens: TokenisedRow | None = None

    @property
    def problems(self) -> list[Problem]:
        return [self.row.problem(fault) for fault in self.faults]

    @property
    def is_good(self) -> bool:
        return self.total > 0 and all(fault.code in WARNINGS for fault in self.faults)


@dataclass
class SourceCheck:
    """The check of one source for a target: ``check`` and the local engine both decide by it.

    ``problems``: errors and warnings in the order of the rows, those of the whole source last. ``rows``: with
    ``keep_rows``, the tokens of all good rows. ``output_cls``: a class that must accept every answer; None: that of the
    row, where it is known. ``known``: schemas of a training that this one goes on from.
    """

    target: TrainingTarget
    keep_rows: bool = False
    output_cls: type[BaseModel] | None = None
    known: Sequence[Mapping[str, Any]] = ()
    problems: list[Problem] = field(default_factory=list)
    rows: list[TokenisedRow] = field(default_factory=list)
    lines: int = 0
    good: int = 0
    tokens: int = 0
    trained: int = 0
    reasoning: int = 0
    longest: int = 0

    def __post_init__(self) -> None:
        if self.output_cls is not None:
            class_schema(self.output_cls)  # raises for what is no class of answers
        self._first_of: dict[str, tuple[str, int]] = {}  # an Example's id -> file and line of its first copy
        self._fields, self._answers = FieldUse(self.known), AnswerTexts()
        self._first_good: SourceRow | None = None
        self._has_reasoning = False

    def run(self, source: CheckSource, rows: Iterable[SourceRow] | None = None) -> None:
        """Check a source. ``rows``: those of the source where they are read already; it is not read again.

        Content of the source never makes it raise.
        """
        checked: list[_CheckedRow] = []
        at_end: list[Problem] = []
        try:
            self._reader = (
                reader_of(source, self.target.name) if rows is None else LineReader(self.target.name)
            )
            for row in source_rows(source) if rows is None else rows:
                checked += self._checked(row)
            at_end = self._size_problems(source)
        except OSError as error:
            at_end = [unreadable(source, error)]
        at_end += self._walk(checked, source)
        for item in checked:
            self._count(item)
        if not at_end or self.lines:
            at_end = [*self._count_problems(source), *at_end]
        fields = (Problem(fault.code, fault.message, source_name(source)) for fault in self._fields.faults())
        self.problems += [*at_end, *fields]

    @property
    def may_have_windows(self) -> bool:
        """Whether there is no error, and the first answer to a schema is a list, or an object of lists alone."""
        firsts = (next(self._answers.parsed(key)) for key in self._answers.schemas)
        is_clean = all(problem.is_warning for problem in self.problems)
        return is_clean and any(map(_is_lists, firsts))

    def schema_tokens(self) -> int | None:
        """Tokens that the largest schema takes in a prompt; None where the target's prompts have none of their own."""
        room, schemas = self.target.schema_tokens, self._answers.schemas.values()
        return None if room is None or not schemas else max(map(room, schemas))

    def first_good(self, source: CheckSource) -> TokenisedRow | None:
        """The tokens of the first good row, for which the source is read again up to that row.

        None where there is none, or where the file has been removed or changed in between.
        """
        if self._first_good is None:
            return None
        place = (self._first_good.file, self._first_good.number)
        with contextlib.suppress(OSError, *RENDER_ERRORS):
            for row in source_rows(source):
                if (row.file, row.number) == place:
                    examples, _ = self._reader.read_row(row.content, torn=row.torn)
                    return self.target.tokenise(examples[-1]) if examples else None
        return None

    def _checked(self, row: SourceRow) -> list[_CheckedRow]:
        """The Examples of a row, each checked; the row alone where it has faults and no Example."""
        read = _CheckedRow(row._replace(content=b""), [])  # the line itself is not needed any more
        examples: list[Example] = []
        with _reporting(read):
            examples, read.faults = self._reader.read_row(row.content, torn=row.torn)
        if not examples:
            return [read] if read.faults else []
        rows = [read, *(replace(read, faults=[]) for _ in examples[1:])]
        return [self._examined(each, example, row) for each, example in zip(rows, examples, strict=True)]

    def _examined(self, checked: _CheckedRow, example: Example, row: SourceRow) -> _CheckedRow:
        """The row with the counts of one Example in it, and its faults beside those of reading it."""
        with _reporting(checked):
            wrong = example_faults(example) or value_faults(example, self.output_cls or class_of(example))
            is_wrong = any(fault.code not in WARNINGS for fault in wrong)
            tokens, token_faults = (None, []) if is_wrong else self._tokenise(example)
            checked.faults += [*wrong, *self._duplicate_faults(example, row), *token_faults]
            if tokens is not None:
                checked.total, checked.trained = tokens.total, sum(tokens.trained)
                checked.reasoning = tokens.reasoning
                if checked.is_good:
                    self._keep(checked, example, tokens)
        return checked

    def _duplicate_faults(self, example: Example, row: SourceRow) -> list[Fault]:
        here = (row.file, row.number)
        file, line = first = self._first_of.setdefault(example.id, here)
        if first == here:
            return []
        return [Fault("duplicate", f"the same as line {line}" + ("" if file == row.file else f" of {file}"))]

    def _tokenise(self, example: Example) -> tuple[TokenisedRow | None, list[Fault]]:
        try:
            tokens = self.target.tokenise(example)
        except RENDER_ERRORS as error:
            return None, [Fault("cannot_render", str(error))]
        limit = self.target.max_length
        faults = list(tokens.faults)
        if not any(tokens.trained):
            faults.append(Fault("zero_trained", "no token of the row would be trained"))
        elif limit is not None and tokens.total > limit:
            faults.append(Fault("answer_cut", f"{tokens.total} tokens, the limit is {limit}"))
        return tokens, faults

    def _keep(self, checked: _CheckedRow, example: Example, tokens: TokenisedRow) -> None:
        """Keep what later steps need of a good row: all of it would be several times the size of the file."""
        self._fields.add(example)
        self._has_reasoning |= bool((example.answer.reasoning_content or "").strip())
        if self.target.walker is not None and (key := self._answers.add(example)) is not None:
            checked.key, checked.answer = key, array("I", tokens.answer[tokens.reasoning :])
        if self.keep_rows:
            checked.tokens = tokens

    def _walk(self, checked: list[_CheckedRow], source: CheckSource) -> list[Problem]:
        """Walk the good rows' answers through the grammars that bounds learned from all of them give.

        Returns what is wrong with the source as a whole; faults of rows are added to them.
        """
        if self.target.walker is None or not self._answers.schemas:
            return []
        try:
            walk = self.target.walker(self._answers)
        except ConfigurationError:  # of the base model, or a missing extra
            raise
        except Exception as error:
            return [Problem("internal", f"{type(error).__name__}: {error}", source_name(source))]
        for item in sorted(checked, key=lambda row: row.key):  # stable: each schema's rows keep their order
            if item.answer is not None:
                try:
                    item.faults += walk(item.key, item.answer)
                except Exception as error:  # as for the rows
                    item.faults.append(Fault("internal", f"{type(error).__name__}: {error}"))
                item.answer = None
        return []

    def _count(self, item: _CheckedRow) -> None:
        self.lines += 1
        self.problems += item.problems
        if not item.is_good:
            return
        self.good += 1
        self.tokens += item.total
        self.trained += item.trained
        self.reasoning += item.reasoning
        self.longest = max(self.longest, item.total)
        if self.good == 1:
            self._first_good = item.row
        if item.tokens is not None:
            self.rows.append(item.tokens)

    def _count_problems(self, source: CheckSource) -> list[Problem]:
        if self.lines == sum(problem.code == "torn_line" for problem in self.problems):
            return [empty(source)]
        least = self.target.min_examples
        if self.good < least:
            return [Problem("too_few_examples", f"{self.good}, expected {least}", source_name(source))]
        if self.target.reasons and self.good and not self._has_reasoning:
            what = "no answer has reasoning to keep (reasoning_content)"
            return [Problem("no_reasoning", what, source_name(source))]
        return []

    def _size_problems(self, source: CheckSource) -> list[Problem]:
        if (limit := self.target.max_bytes) is None:
            return []
        size = sum(file.stat().st_size for file in files_of(source))
        if size <= limit:
            return []
        return [Problem("file_too_large", f"{size} bytes, the limit is {limit}", source_name(source))]


@contextlib.contextmanager
def _reporting(row: _CheckedRow) -> Iterator[None]:
    """Make what is raised a fault of the row: a check must report every other line too."""
    try:
        yield
    except MissingDependencyError:
        raise
    except RecursionError:
        row.faults = [Fault("too_deep", "nested too deeply to be written again")]
    except Exception as error:
        row.faults = [Fault("internal", f"{type(error).__name__}: {error}")]


def _is_lists(answer: object) -> bool:
    values = answer.values() if isinstance(answer, dict) else [answer]
    return all(value is None or isinstance(value, list) for value in values)


def trainable_rows(
    target: TrainingTarget,
    source: CheckSource,
    rows: Iterable[SourceRow],
    known: Sequence[Mapping[str, Any]] | None = None,
) -> list[TokenisedRow]:
    """The rows of a source as the target trains on them.

    ``known``: as of ``SourceCheck``; fields that the rows hardly teach are then logged as warnings. None: the rows are
    held out, and teach nothing. Raises DatasetError with the text of every error that ``check`` has for the source.
    """
    done = SourceCheck(target, keep_rows=True, known=known or ())
    done.run(source, rows)
    refuse_errors(done.problems)
    for problem in done.problems:
        if known is not None and problem.code in ("field_untaught", "field_new"):
            _log.warning("%s", problem)
    return done.rows
