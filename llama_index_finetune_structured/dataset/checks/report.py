"""Preflight check of a training file: its problems, token counts, cost, and one example's trained span.

The source is never written to.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from ...errors import ConfigurationError, DatasetError
from ...example import Example
from ...jsonl import save_lines
from ...local.model.adapter import find_adapter, read_card
from ...local.model.prompts import SchemaPrompt, ToolPrompt, prompt_form_of
from ...local.model.reasoning import Thinking
from ...local.schema.list_items import learn_list_rules
from ...local.train.memory import MemoryPlan
from ...printable import printable
from ..windows import bare_examples, window_rows
from .counterfactuals import MOST_EXAMPLES, counterfactual_rows
from .problems import Problem, listing
from .rows import (
    CheckSource,
    as_source,
    files_of,
    parsed_rows,
    readable_examples,
    source_rows,
    unreadable,
)
from .run import SourceCheck
from .targets import TokenisedRow, TrainingTarget, target_named

__all__ = ["CheckReport", "TrainedSpan", "check"]

_SHOWN, _SHOWN_END = 400, 60  # chosen: characters of a printed span, and of its end


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
        reasoning_tokens: Those of them that are reasoning before answers, with its marks.
        longest_tokens: Tokens of the longest line.
        estimated: Whether the tokenizer is not the target's own, so that token counts are approximate.
        window_rows: Rows of windows that the local engine adds to these, as ``LoraSettings`` says.
        counterfactual_rows: Rows that it adds which differ from these in one field.
        epochs: Number of epochs that ``cost`` covers.
        cost: Price of ``tokens`` over all ``epochs``, in the currency of the given price. None: no price given.
        schema_tokens: Tokens that the largest schema takes in a prompt, for "local". None: prompts have no schema.
        span: The trained span of the first good line. None: there is no good line.
        memory: For "local", how training the good lines by default fits into this machine's memory: at most what it
            takes, by the length of the lines. None: there is no good line, or the base model's weights are not there.
    """

    target: str
    source: CheckSource
    lines: int
    good: int
    problems: tuple[Problem, ...]
    tokens: int
    trained_tokens: int
    reasoning_tokens: int
    longest_tokens: int
    estimated: bool
    window_rows: int
    counterfactual_rows: int
    epochs: int
    cost: float | None
    schema_tokens: int | None
    span: TrainedSpan | None
    memory: MemoryPlan | None = None

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
            ConfigurationError: ``path`` is the source itself, or cannot be written.
            DatasetError: The source cannot be read.
        """
        target = Path(path)
        if target.exists() and any(target.samefile(file) for file in files_of(self.source)):
            raise ConfigurationError(f"{target}: is the file that was checked; give another path")
        bad = {(p.file, p.line) for p in self.problems if not p.is_warning or p.code == "torn_line"}
        try:
            good = [row.content for row in source_rows(self.source) if (row.file, row.number) not in bad]
        except OSError as error:
            raise DatasetError(str(unreadable(self.source, error))) from error
        return save_lines(target, map(_line_text, good))

    def __repr__(self) -> str:
        """Short: the problems and the span could fill a terminal; ``str`` lists the problems."""
        found = f"{self.good} of {self.lines} lines are good, {len(self.problems)} problems"
        return f"<CheckReport for target {self.target!r}: {found}>"

    def __str__(self) -> str:
        about = " (estimated: not the target's tokenizer)" if self.estimated else ""
        lines = [
            *listing(self.problems),
            f"{self.good} of {self.lines} lines are good for target {self.target!r}",
            f"{self.trained_tokens} trained of {self.tokens} tokens x {self.epochs} epochs{about}, "
            f"longest row {self.longest_tokens}",
        ]
        if self.reasoning_tokens:
            lines.append(f"{self.reasoning_tokens} of the trained tokens are reasoning")
        if self.window_rows:
            lines.append(f"training adds {self.window_rows} rows of windows, for complete lists")
        if self.counterfactual_rows:
            lines.append(f"training adds {self.counterfactual_rows} rows that differ in one field")
        if self.schema_tokens is not None:
            lines.append(
                f"the schema takes {self.schema_tokens} tokens of a prompt; rows that begin alike share them"
            )
        if self.memory is not None:
            lines.append(f"training: at most {self.memory.summary}")
        if self.cost is not None:
            lines.append(f"about {self.cost:.2f} at the given price")
        if self.span is not None:
            lines.append(f"trained span of the first good line: {_shortened(self.span.trained_text)!r}")
        return printable("\n".join(lines))


def check(
    source: str | Path | Iterable[Example],
    *,
    target: str | TrainingTarget = "local",
    base_model: str | Path | None = None,
    max_length: int | None = None,
    epochs: int | None = None,
    price_per_million: float | None = None,
    output_cls: type[BaseModel] | None = None,
    schema_prompt: SchemaPrompt | None = None,
    tool_prompt: ToolPrompt | None = None,
    thinking: Thinking = "drop",
    start_from: str | Path | None = None,
) -> CheckReport:
    """Check every line of a file of any format, or every Example, as ``target`` would train on it.

    Content of the file never makes it raise: problems are in the report.

    Args:
        source: A file, with the other shards of a capture, or Examples.
        target: "local", "openai", "trl", "gradient", or a TrainingTarget of your own.
        base_model: Base model whose tokenizer "local" and "trl" use: a folder, a ``.gguf`` file or a hub id. None:
            that of ``start_from``, else the embedded default.
        max_length: Most tokens of a row. None: the target's own limit, which for "local" is the base model's
            context window.
        epochs: Number of epochs that the cost is for. None: for "local" as many as ``LoraSettings()`` would take
            for the good lines and the rows of windows, for other targets 1.
        price_per_million: Price of one million tokens, trained or not, each epoch. None: no cost is computed.
        output_cls: Class that must accept every answer. None: each row's own class, where its module is imported, and
            its own JSON schema decide.
        tool_prompt: For "local", how agents' tools and calls are written, as in ``LoraSettings``.
        schema_prompt: For "local", how prompts say the schema, as in ``LoraSettings``.
        thinking: For "local", whether the reasoning of answers is trained, as in ``LoraSettings``.
        start_from: Adapter or run that training will go on from: fields that are new to it are named, with the number
            of rows that teach each. None: training begins anew.

    Raises:
        ConfigurationError: The target is unknown, the base model does not load, ``source`` holds anything else,
            ``start_from`` holds no adapter, or ``max_length`` or ``epochs`` is below 1.
        MissingDependencyError: The extra "local" is not installed, which the targets "local" and "trl" need.
    """
    for name, value in (("max_length", max_length), ("epochs", epochs)):
        if value is not None and value < 1:
            raise ConfigurationError(f"{name}: is {value}, expected at least 1, or None")
    rows = as_source(source)
    start = None if start_from is None else read_card(find_adapter(Path(start_from)))
    if isinstance(target, str):
        examples = readable_examples(rows) if target == "local" else ()
        form = prompt_form_of(examples, schema_prompt, thinking, tool_prompt)
        base_model = base_model or (None if start is None else start.base_model)
        target = target_named(target, base_model, max_length, form)
    done = SourceCheck(target, output_cls=output_cls, known=start.schemas if start else ())
    done.run(rows)
    windows = _window_rows(rows, done)
    counterfactuals = 0 if windows or start else _counterfactual_rows(rows, done)
    epochs = target.default_epochs(done.good + windows, counterfactuals) if epochs is None else epochs
    first_good = done.first_good(rows)
    return CheckReport(
        target=target.name,
        source=rows,
        lines=done.lines,
        good=done.good,
        problems=tuple(done.problems),
        tokens=done.tokens,
        trained_tokens=done.trained,
        reasoning_tokens=done.reasoning,
        longest_tokens=done.longest,
        estimated=target.estimated,
        window_rows=windows,
        counterfactual_rows=counterfactuals,
        epochs=epochs,
        cost=None if price_per_million is None else done.tokens * epochs * price_per_million / 1e6,
        schema_tokens=done.schema_tokens(),
        span=None if first_good is None else _span(first_good, target),
        memory=target.memory(done.longest, done.tokens, done.good),
    )


def _window_rows(source: CheckSource, done: SourceCheck) -> int:
    """How many rows of windows the local engine adds by itself; the source is read again where it may add some."""
    if not done.may_have_windows:
        return 0
    examples = bare_examples(_again(source, done))
    return len(window_rows(examples, learn_list_rules(examples)))


def _counterfactual_rows(source: CheckSource, done: SourceCheck) -> int:
    """How many rows that differ in one field the local engine adds by itself."""
    return len(counterfactual_rows(_again(source, done))) if done.good <= MOST_EXAMPLES else 0


def _again(source: CheckSource, done: SourceCheck) -> list[Example]:
    """The good examples, of which the local engine may make rows by itself."""
    if done.target.name != "local" or done.target.reasons:
        return []
    bad = {(problem.file, problem.line) for problem in done.problems if not problem.is_warning}
    try:
        rows = [row for row in parsed_rows(source) if (row.file, row.number) not in bad]
        return [row.content for row in rows if isinstance(row.content, Example)]
    except DatasetError:  # the file has been changed in between
        return []


def _shortened(text: str) -> str:
    """The text without its middle where it would fill a terminal; its end shows the stop token."""
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - _SHOWN_END]} [...] {text[-_SHOWN_END:]}"


def _span(row: TokenisedRow, target: TrainingTarget) -> TrainedSpan:
    return TrainedSpan(row.ids, row.trained, target.decode(row.prompt), target.decode(row.answer))


def _line_text(content: bytes | Example) -> str:
    return content.to_json() if isinstance(content, Example) else content.decode("utf-8").rstrip("\r\n")
