"""Preflight check of a training file: its problems, token counts, cost, and one example's trained span.

The source is never written to.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ...errors import ConfigurationError
from ...example import Example
from ...jsonl import read_lines, write_lines
from ...jsonl_store import shards_of
from .lines import LineReader, example_faults
from .problems import Fault, Problem
from .targets import RENDER_ERRORS, TokenisedRow, TrainingTarget, target_named

__all__ = ["CheckReport", "CheckSource", "TrainedSpan", "check"]

_IN_MEMORY = "dataset"  # stands for the file's name where Examples in memory are checked
CheckSource = str | Path | tuple[Example, ...]
"""What is checked: a file, with a capture's other shards, or Examples in memory."""


class _SourceRow(NamedTuple):
    """One line of a file, or one Example; ``number`` counts from 1, blank lines included."""

    file: str
    number: int
    content: bytes | Example


@dataclass(frozen=True)
class TrainedSpan:
    """One example as it is trained.

    Attributes:
        ids: Token ids of prompt and answer.
        trained: For each token whether the loss is on it.
        prompt_text: The tokens without loss, as text.
        trained_text: The tokens with loss, as text.
    """

    ids: tuple[int, ...]
    trained: tuple[bool, ...]
    prompt_text: str
    trained_text: str

    def __repr__(self) -> str:
        """Short: the token ids alone would fill a terminal."""
        return f"<TrainedSpan: {sum(self.trained)} trained of {len(self.ids)} tokens, {self.trained_text[:80]!r}>"


@dataclass(frozen=True)
class CheckReport:
    """The result of ``check``.

    Token counts are of the good lines, for one epoch.

    Attributes:
        target: Name of the target.
        source: The file that was checked, or the Examples.
        lines: Number of lines that are not blank.
        good: Number of lines without an error; warnings are allowed.
        problems: Errors and warnings in the order of the lines, those of the whole file last.
        tokens: Tokens that a provider bills.
        trained_tokens: Tokens that carry the loss.
        longest_tokens: Tokens of the longest line.
        estimated: Whether the tokenizer is not the target's own, so that token counts are approximate.
        epochs: Number of epochs that ``cost`` covers.
        cost: Price of ``tokens`` over all ``epochs``, in the currency of the given price. None: no price given.
        span: The trained span of the first good line. None: there is no good line.
    """

    target: str
    source: CheckSource
    lines: int
    good: int
    problems: tuple[Problem, ...]
    tokens: int
    trained_tokens: int
    longest_tokens: int
    estimated: bool
    epochs: int
    cost: float | None
    span: TrainedSpan | None

    @property
    def ok(self) -> bool:
        """Whether there is no error; warnings are allowed."""
        return all(problem.is_warning for problem in self.problems)

    def fix(self, path: str | Path) -> Path:
        """Write the good lines, unchanged, to a new file.

        Args:
            path: File to write, atomically.

        Returns:
            ``path``.

        Raises:
            ConfigurationError: ``path`` is the source itself.
        """
        target = Path(path)
        if target.exists() and any(target.samefile(file) for file in _files(self.source)):
            raise ConfigurationError(f"{target}: is the file that was checked; give another path")
        bad = {(p.file, p.line) for p in self.problems if not p.is_warning}
        good = (row.content for row in _rows(self.source) if (row.file, row.number) not in bad)
        return write_lines(target, map(_line_text, good))

    def __repr__(self) -> str:
        """Short: the problems and the span could fill a terminal; ``str`` has all problems."""
        found = f"{self.good} of {self.lines} lines are good, {len(self.problems)} problems"
        return f"<CheckReport for target {self.target!r}: {found}>"

    def __str__(self) -> str:
        about = " (estimated: not the target's tokenizer)" if self.estimated else ""
        lines = [str(problem) for problem in self.problems]
        lines += [
            f"{self.good} of {self.lines} lines are good for target {self.target!r}",
            f"{self.trained_tokens} trained of {self.tokens} tokens x {self.epochs} epochs{about}, "
            f"longest row {self.longest_tokens}",
        ]
        if self.cost is not None:
            lines.append(f"about {self.cost:.2f} at the given price")
        if self.span is not None:
            lines.append(f"trained span of the first good line: {self.span.trained_text!r}")
        return "\n".join(lines)


def check(
    source: str | Path | Iterable[Example],
    *,
    target: str | TrainingTarget = "local",
    base_model: str | Path | None = None,
    max_length: int | None = None,
    epochs: int = 1,
    price_per_million: float | None = None,
) -> CheckReport:
    """Check every line of a file of any format, or every Example, as ``target`` would train on it.

    Content of the file never makes it raise: problems are in the report.

    Args:
        source: A file, with the other shards of a capture, or Examples.
        target: "local", "openai", "trl", "gradient", or a TrainingTarget of your own.
        base_model: Base model whose tokenizer "local" and "trl" use: a folder, a ``.gguf`` file or a hub id. None:
            the embedded default.
        max_length: Most tokens of a row. None: the target's own limit.
        epochs: Number of epochs that the cost is for.
        price_per_million: Price of one million tokens, trained or not, each epoch. None: no cost is computed.

    Raises:
        ConfigurationError: The target is unknown, the base model does not load, or ``source`` holds anything else.
        MissingDependencyError: The extra "local" is not installed, which the targets "local" and "trl" need.
    """
    rows = source if isinstance(source, str | Path) else _examples(source)
    if isinstance(target, str):
        target = target_named(target, base_model, max_length)
    return _CheckRun(target, rows).report(epochs, price_per_million)


def _examples(source: Iterable[Example]) -> tuple[Example, ...]:
    examples = tuple(source)
    wrong = next((type(item).__name__ for item in examples if not isinstance(item, Example)), None)
    if wrong is not None:
        raise ConfigurationError(f"source: holds {wrong}, expected Examples, or the path of a file")
    return examples


def _files(source: CheckSource) -> list[Path]:
    return [file for file in shards_of(source) if file.exists()] if isinstance(source, str | Path) else []


def _rows(source: CheckSource) -> Iterator[_SourceRow]:
    """The lines that are not blank, or the Examples."""
    if isinstance(source, tuple):
        for number, example in enumerate(source, start=1):
            yield _SourceRow(_IN_MEMORY, number, example)
        return
    for path in shards_of(source):
        for line in read_lines(path, torn_from=None):
            yield _SourceRow(str(path), line.number, line.raw)


def _line_text(content: bytes | Example) -> str:
    return content.to_json() if isinstance(content, Example) else content.decode("utf-8").rstrip("\r\n")


class _CheckRun:
    """One pass over the source that collects problems and counts."""

    def __init__(self, target: TrainingTarget, source: CheckSource) -> None:
        self._target, self._source = target, source
        self._reader = LineReader(target.name)
        self._problems: list[Problem] = []
        self._first_of: dict[str, tuple[str, int]] = {}  # an Example's id -> file and line of its first copy
        self._lines = self._good = self._tokens = self._trained = self._longest = 0
        self._span: TrainedSpan | None = None

    def report(self, epochs: int, price_per_million: float | None) -> CheckReport:
        try:
            for row in _rows(self._source):
                self._lines += 1
                self._check_row(row)
            self._check_whole_source()
        except OSError as error:
            self._add_problem("cannot_read", f"{error.strerror or error}", str(self._source))
        cost = None if price_per_million is None else self._tokens * epochs * price_per_million / 1e6
        return CheckReport(
            target=self._target.name,
            source=self._source,
            lines=self._lines,
            good=self._good,
            problems=tuple(self._problems),
            tokens=self._tokens,
            trained_tokens=self._trained,
            longest_tokens=self._longest,
            estimated=self._target.estimated,
            epochs=epochs,
            cost=cost,
            span=self._span,
        )

    def _add_problem(self, code: str, message: str, file: str, line: int = 0) -> None:
        self._problems.append(Problem(code, message, file, line))

    def _check_row(self, row: _SourceRow) -> None:
        try:
            tokens, faults = self._examine(row)
        except RecursionError:
            tokens, faults = None, [Fault("too_deep", "nested too deeply to be written again")]
        except Exception as error:  # a check must report every other line too
            tokens, faults = None, [Fault("internal", f"{type(error).__name__}: {error}")]
        problems = [Problem(fault.code, fault.message, row.file, row.number) for fault in faults]
        self._problems += problems
        if tokens is not None and all(problem.is_warning for problem in problems):
            self._count(tokens)

    def _examine(self, row: _SourceRow) -> tuple[TokenisedRow | None, list[Fault]]:
        """The row's tokens, None where it has none, and all its faults."""
        content = row.content
        example, faults = (content, []) if isinstance(content, Example) else self._reader.read(content)
        if example is None:
            return None, faults
        wrong = example_faults(example)
        tokens, token_faults = (None, []) if wrong else self._tokenise(example)
        return tokens, [*faults, *wrong, *self._duplicate_faults(example, row), *token_faults]

    def _duplicate_faults(self, example: Example, row: _SourceRow) -> list[Fault]:
        here = (row.file, row.number)
        file, line = first = self._first_of.setdefault(example.id, here)
        if first == here:
            return []
        return [Fault("duplicate", f"the same as line {line}" + ("" if file == row.file else f" of {file}"))]

    def _tokenise(self, example: Example) -> tuple[TokenisedRow | None, list[Fault]]:
        try:
            tokens = self._target.tokenise(example)
        except RENDER_ERRORS as error:
            return None, [Fault("cannot_render", str(error))]
        limit = self._target.max_length
        faults = list(tokens.faults)
        if not any(tokens.trained):
            faults.append(Fault("zero_trained", "no token of the row would be trained"))
        elif limit is not None and tokens.total > limit:
            faults.append(Fault("answer_cut", f"{tokens.total} tokens, the limit is {limit}"))
        return tokens, faults

    def _count(self, tokens: TokenisedRow) -> None:
        self._good += 1
        self._tokens += tokens.total
        self._trained += sum(tokens.trained)
        self._longest = max(self._longest, tokens.total)
        if self._span is None:
            trained = [i for i, t in zip(tokens.ids, tokens.trained, strict=True) if t]
            prompt = [i for i, t in zip(tokens.ids, tokens.trained, strict=True) if not t]
            decode = self._target.decode
            self._span = TrainedSpan(tokens.ids, tokens.trained, decode(prompt), decode(trained))

    def _check_whole_source(self) -> None:
        name = _IN_MEMORY if isinstance(self._source, tuple) else str(self._source)
        target = self._target
        if self._lines == 0:
            self._add_problem("no_examples", "no lines in it", name)
        elif self._good < target.min_examples:
            self._add_problem("too_few_examples", f"{self._good}, expected {target.min_examples}", name)
        size = sum(file.stat().st_size for file in _files(self._source))
        if target.max_bytes is not None and size > target.max_bytes:
            self._add_problem("file_too_large", f"{size} bytes, the limit is {target.max_bytes}", name)
