"""Preflight: every problem of a training file before it costs anything, and what will be trained.

Counts tokens with the target's tokenizer and shows the trained span of an example. The source is only read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ...errors import ConfigurationError
from ...example import Example
from ...jsonl import read_lines, write_lines
from ...jsonl_store import shards_of
from .lines import Fault, LineReader, example_faults
from .problems import Problem
from .targets import RENDER_ERRORS, Target, Tokens, target_named

__all__ = ["CheckReport", "TrainedSpan", "check"]

_IN_MEMORY = "dataset"
Line = tuple[str, int, bytes | Example]
Source = str | Path | tuple[Example, ...]


@dataclass(frozen=True)
class TrainedSpan:
    """One example as it is trained: its tokens, which of them carry the loss, and both parts as text."""

    ids: tuple[int, ...]
    trained: tuple[bool, ...]
    prompt_text: str
    trained_text: str


@dataclass(frozen=True)
class CheckReport:
    """What :func:`check` found. Token counts are of the good lines, for one epoch before ``epochs``.

    ``trained_tokens`` carry the loss; ``tokens`` is what a provider bills. ``cost`` is None without a price.
    """

    target: str
    source: Source
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
        """No errors; warnings may be there."""
        return all(problem.is_warning for problem in self.problems)

    def fix(self, path: str | Path) -> Path:
        """Write the good lines, as they are, to a new file; ConfigurationError for the source itself."""
        target = Path(path)
        if target.exists() and any(target.samefile(file) for file in _files(self.source)):
            raise ConfigurationError(f"{target}: is the file that was checked; give another path")
        bad = {(p.file, p.line) for p in self.problems if not p.is_warning}
        good = (what for file, number, what in _lines(self.source) if (file, number) not in bad)
        return write_lines(target, (w.to_json() if isinstance(w, Example) else _text(w) for w in good))

    def __str__(self) -> str:
        about = " (estimated: not the target's tokenizer)" if self.estimated else ""
        rows = [str(problem) for problem in self.problems]
        rows += [
            f"{self.good} of {self.lines} lines are good for target {self.target!r}",
            f"{self.trained_tokens} trained of {self.tokens} tokens x {self.epochs} epochs{about}, "
            f"longest row {self.longest_tokens}",
        ]
        if self.cost is not None:
            rows.append(f"about {self.cost:.2f} at the given price")
        if self.span is not None:
            rows.append(f"trained span of the first good line: {self.span.trained_text!r}")
        return "\n".join(rows)


def check(
    source: str | Path | Iterable[Example],
    *,
    target: str | Target = "local",
    base_model: str | Path | None = None,
    max_length: int | None = None,
    epochs: int = 1,
    price_per_million: float | None = None,
) -> CheckReport:
    """Look at every line of a file (of any format) or every Example, as ``target`` would train on it.

    ``target``: "local", "openai", "trl", "gradient", or a Target of your own. ``base_model`` is the
    tokenizer's for "local" and "trl" (None: the embedded default); ``max_length`` in tokens a row (None: the
    target's own limit); ``price_per_million`` of tokens, all of them, each epoch.
    No content of the file makes it raise; ConfigurationError is for wrong settings.
    """
    given = source if isinstance(source, str | Path) else _examples(source)
    if isinstance(target, str):
        target = target_named(target, base_model, max_length)
    return _Run(target, given).report(epochs, price_per_million)


def _examples(source: Iterable[Example]) -> tuple[Example, ...]:
    examples = tuple(source)
    strange = next((type(item).__name__ for item in examples if not isinstance(item, Example)), None)
    if strange is not None:
        raise ConfigurationError(f"source: holds {strange}, expected Examples, or the path of a file")
    return examples


def _files(source: Source) -> list[Path]:
    return [file for file in shards_of(source) if file.exists()] if isinstance(source, str | Path) else []


def _lines(source: Source) -> Iterator[Line]:
    """(file, line number, line or Example); blank lines are left out, numbers count them."""
    if isinstance(source, tuple):
        yield from ((_IN_MEMORY, number, example) for number, example in enumerate(source, start=1))
        return
    for path in shards_of(source):
        for line in read_lines(path, torn_from=None):
            yield str(path), line.number, line.raw


def _text(line: bytes) -> str:
    return line.decode("utf-8").rstrip("\r\n")


class _Run:
    """One pass over the source, adding up."""

    def __init__(self, target: Target, source: Source) -> None:
        self._target, self._source = target, source
        self._read = LineReader(target.name)
        self._problems: list[Problem] = []
        self._seen: dict[str, tuple[str, int]] = {}
        self._lines = self._good = self._tokens = self._trained = self._longest = 0
        self._span: TrainedSpan | None = None

    def report(self, epochs: int, price_per_million: float | None) -> CheckReport:
        try:
            for file, number, what in _lines(self._source):
                self._lines += 1
                self._line(file, number, what)
            self._whole_file()
        except OSError as error:
            self._note("cannot_read", f"{error.strerror or error}", str(self._source))
        cost = None if price_per_million is None else self._tokens * epochs * price_per_million / 1e6
        return CheckReport(
            self._target.name, self._source, self._lines, self._good, tuple(self._problems), self._tokens,
            self._trained, self._longest, self._target.estimated, epochs, cost, self._span,
        )  # fmt: skip

    def _note(self, code: str, message: str, file: str, line: int = 0) -> None:
        self._problems.append(Problem(code, message, file, line))

    def _line(self, file: str, number: int, what: bytes | Example) -> None:
        try:
            tokens, faults = self._looked_at(what, (file, number))
        except RecursionError:
            tokens, faults = None, [("too_deep", "nested too deeply to be written again")]
        except Exception as error:  # a preflight that dies of a line is of no use
            tokens, faults = None, [("internal", f"{type(error).__name__}: {error}")]
        problems = [Problem(code, message, file, number) for code, message in faults]
        self._problems += problems
        if tokens is not None and all(problem.is_warning for problem in problems):
            self._count(tokens)

    def _looked_at(self, what: bytes | Example, here: tuple[str, int]) -> tuple[Tokens | None, list[Fault]]:
        example, faults = (what, []) if isinstance(what, Example) else self._read(what)
        if example is None:
            return None, faults
        wrong = example_faults(example)
        tokens, more = (None, []) if wrong else self._tokenised(example)
        return tokens, [*faults, *wrong, *self._repeated(example, here), *more]

    def _repeated(self, example: Example, here: tuple[str, int]) -> list[Fault]:
        file, line = first = self._seen.setdefault(example.id, here)
        if first == here:
            return []
        return [("duplicate", f"the same as line {line}" + ("" if file == here[0] else f" of {file}"))]

    def _tokenised(self, example: Example) -> tuple[Tokens | None, list[Fault]]:
        try:
            tokens = self._target.tokenise(example)
        except RENDER_ERRORS as error:
            return None, [("cannot_render", str(error))]
        limit = self._target.max_length
        faults = list(tokens.faults)
        if not any(tokens.trained):
            faults.append(("zero_trained", "no token of the row would be trained"))
        elif limit is not None and tokens.total > limit:
            faults.append(("answer_cut", f"{tokens.total} tokens, the limit is {limit}"))
        return tokens, faults

    def _count(self, tokens: Tokens) -> None:
        self._good += 1
        self._tokens += tokens.total
        self._trained += sum(tokens.trained)
        self._longest = max(self._longest, tokens.total)
        if self._span is None:
            learned = [i for i, t in zip(tokens.ids, tokens.trained, strict=True) if t]
            rest = [i for i, t in zip(tokens.ids, tokens.trained, strict=True) if not t]
            decode = self._target.decode
            self._span = TrainedSpan(tokens.ids, tokens.trained, decode(rest), decode(learned))

    def _whole_file(self) -> None:
        name = _IN_MEMORY if isinstance(self._source, tuple) else str(self._source)
        if self._lines == 0:
            self._note("no_examples", "not one line", name)
        elif self._good < self._target.min_examples:
            self._note("too_few_examples", f"{self._good}, expected {self._target.min_examples}", name)
        size = sum(file.stat().st_size for file in _files(self._source))
        if self._target.max_bytes is not None and size > self._target.max_bytes:
            self._note("file_too_large", f"{size} bytes, the limit is {self._target.max_bytes}", name)
