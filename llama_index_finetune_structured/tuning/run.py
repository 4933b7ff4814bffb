"""``tune``: training data in; a tuned model out, scored with its base on held-out rows.

A run's folder is that of the training engine, with the split, the answers, the scorecard and the report beside the
adapter. Each step reads what an earlier call has left there, so that the same call goes on where that one stopped.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, JsonValue, ValidationError

from ..checksums import read_checked_json, with_checksum
from ..dataset import FinetuneDataset
from ..engines.lora import LoraFinetuneEngine
from ..errors import ConfigurationError
from ..evaluation.scorecard import Scorecard
from ..example import Example, content_hash
from ..files import write_json
from ..llms.lora import LoraLLM
from ..local.model.base_models import DEFAULT_BASE_MODEL, resolve
from ..local.model.prompts import DEFAULT_SCHEMA_PROMPT
from ..local.train.distributed import DistributedRun
from ..local.train.settings import LoraSettings
from ..locks import locked_folder
from ..printable import package_logger
from ..progress_bar import progress_line
from .rows import FEW_ROWS, DividedRows, Rows, precision_of, rows_text
from .scored_run import ANSWERS, HELD_OUT, REPORT, SCORECARD, TRAIN, WRITTEN, ScoredRun

__all__ = ["RECORD", "TuningResult", "base_of", "run_tuning", "settings_of_run", "tune"]

_log = package_logger(__name__)

_OUTPUT = Path("tune-output")
RECORD = "tuning.json"


@dataclass(frozen=True)
class TuningResult:
    """A finished run: the tuned model, its scorecard, the folder with both; rows trained on and held out."""

    student: LoraLLM
    scorecard: Scorecard
    folder: Path
    rows: int
    held_out: int

    @property
    def scorecard_path(self) -> Path:
        """The scorecard's file."""
        return self.folder / SCORECARD

    @property
    def report_path(self) -> Path:
        """The report's HTML page."""
        return self.folder / REPORT

    def lines(self) -> Iterator[str]:
        """The result in words: what the models got right, what failed, and where the files are."""
        yield self.scorecard.verdict()
        yield from self.scorecard.problems()
        yield f"Report: {self.report_path}   model: LoraLLM.from_adapter({str(self.folder)!r})"


def tune(
    data: FinetuneDataset | str | Path | Iterable[Example],
    base_model: str | Path = DEFAULT_BASE_MODEL,
    *,
    minutes: float | None = None,
    validation: FinetuneDataset | str | Path | Iterable[Example] | None = None,
    output_cls: type[BaseModel] | None = None,
    output_dir: str | Path | None = None,
    seed: int = 0,
) -> LoraLLM:
    """Check the rows, hold some of them out, train on the others, score base and tuned model on the held-out rows.

    A fifth of the documents is held out where every row names one of at least two, else a fifth of the questions.
    Held-out rows that are near-duplicates of training rows are not scored, and of many at most 200 are. Training
    sees no held-out row. Both models answer with the same prompts and grammar. Each step is told on stderr.

    ``output_dir`` then holds ``report.html``, ``scorecard.json`` (for ``Scorecard.from_json``), the adapter, and the
    two parts of the rows, ``train.jsonl`` and ``validation.jsonl``. The same call resumes a run that was stopped,
    and returns at once where it is finished. It also works inside a running event loop, which it blocks:
    ``await asyncio.to_thread(tune, ...)`` does not.

    Args:
        data: The path of any file that ``check`` accepts, a FinetuneDataset, or Examples.
        base_model: The embedded ``smollm2-135m-instruct``, a folder, a ``.gguf`` file or a hub id (``owner/name``).
        minutes: Minutes that training may take; scoring comes on top. None: as long as ``LoraSettings`` takes.
        validation: Held-out rows, in any form of ``data``: all of ``data`` is trained on, and all of these are scored.
        output_cls: Class of the answers, for rows that have no schema, or another one: answers are validated by it
            and compared as it writes them. None: each row's own schema.
        output_dir: Folder of the run. None: a folder of ``tune-output`` that is named by the content of the rows, the
            base model and the settings.
        seed: Of the split, LoRA's initial weights and the order of rows.

    Returns:
        The tuned model, a LlamaIndex LLM. Its ``adapter.parent`` is the run's folder, and
        ``LoraLLM.from_adapter(folder)`` makes it again in another process.

    Raises:
        DatasetError: Rows cannot be read or trained on, in the words of ``check``; there is nothing to hold out; or
            rows have no schema and ``output_cls`` is None.
        ConfigurationError: ``output_dir`` holds another run, or files that this one would replace; there is no such
            base model; a setting is out of range; or this is one of several processes.
        EngineError: Another process works in ``output_dir``, or training failed, as ``finetune()`` raises it.
        MissingDependencyError: The extra ``local`` is not installed.
    """
    try:
        done = run_tuning(
            data,
            base_model,
            minutes=minutes,
            validation=validation,
            output_cls=output_cls,
            output_dir=output_dir,
            seed=seed,
            say=progress_line,
        )
    except KeyboardInterrupt:
        progress_line("Stopped. What was finished is kept: the same call goes on from there.")
        raise
    for line in done.lines():
        progress_line(line)
    return done.student


def run_tuning(
    data: Rows,
    base_model: str | Path,
    *,
    minutes: float | None,
    validation: Rows | None,
    output_cls: type[BaseModel] | None,
    output_dir: str | Path | None,
    seed: int,
    say: Callable[[str], None],
) -> TuningResult:
    """See ``tune``, of which this is all; ``say`` takes its messages."""
    if DistributedRun().world_size > 1:
        raise ConfigurationError(
            "tune() runs in one process, and this is one of several: train with LoraFinetuneEngine there, then "
            "compare base and tuned model in one process"
        )
    config = settings_of_run({"seed": seed}, minutes)
    parts = DividedRows.of(data, validation, output_cls, seed)
    base = resolve(base_model)
    identity: dict[str, Any] = {
        "data": content_hash([example.id for example in parts.train]),
        "held-out rows": content_hash([example.id for example in parts.held_out]),
        "base model": base.sha256,
        "output_cls": None if output_cls is None else output_cls.__qualname__,
        **config.model_dump(mode="json", exclude={"checkpoint_steps"}),
    }
    folder = _OUTPUT / content_hash(identity)[:12] if output_dir is None else Path(output_dir)
    if not _holds(folder, identity):
        # Before anything is written: with its rows mended, a run has another identity, and needs the folder.
        parts.check(base.name, config)
    with locked_folder(folder / ANSWERS):
        if not _holds(folder, identity):
            write_json(folder / RECORD, with_checksum(identity))
        engine = LoraFinetuneEngine(parts.train, base_model=base_model, output_dir=folder, config=config)
        return _Run(engine, output_cls, folder, say, parts).result()


def base_of(tuned: LoraLLM) -> LoraLLM:
    """The base of a tuned model, with the same limits and grammar, to compare it with.

    Prompts are the same too, but for a schema that only the tuned model knows without reading it. It answers greedily:
    what an untuned model finds likelier under a grammar is worse (docs/figures.md).
    """
    prompts = {"chat_prompts", "schema_prompt", "reads_twice"}
    limits = {"base_model", "max_new_tokens", "batch_size", "constrained", "answers", "windows", "grounded"}
    same = tuned.model_dump(include=prompts | limits)
    if same["schema_prompt"] == "none":
        same["schema_prompt"] = DEFAULT_SCHEMA_PROMPT
    return LoraLLM(**same, bounds=tuned.bounds, list_rules=tuned.list_rules)


def settings_of_run(record: Mapping[str, Any], minutes: float | None) -> LoraSettings:
    """The settings in the record of a run, ``minutes`` in place of its own unless None."""
    options: dict[str, Any] = {name: record[name] for name in LoraSettings.model_fields if name in record}
    if minutes is not None:
        options["minutes"] = minutes
    try:
        return LoraSettings(**options)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        raise ConfigurationError(
            f"{problem['loc'][0]}: {problem['msg']}, found {problem['input']!r}; give another value"
        ) from error


def _holds(folder: Path, identity: Mapping[str, Any]) -> bool:
    """Whether the folder is of this run; False for one that is free for it.

    Raises ConfigurationError where it is of another run, or has files that this one would replace.
    """
    path = folder / RECORD
    try:
        there = read_checked_json(path)
    except FileNotFoundError:
        if found := [name for name in WRITTEN if os.path.lexists(folder / name)]:
            raise ConfigurationError(
                f"{folder}: holds {', '.join(found)}, which tune() did not write and would replace; choose another "
                "output folder"
            ) from None
        return False
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"{path}: cannot be read, or is damaged ({error}); choose another output folder, or remove that one"
        ) from error
    if differing := [name for name in {**there, **identity} if there.get(name) != identity.get(name)]:
        raise ConfigurationError(
            f"{folder}: holds another run of tune(), which differs in {', '.join(differing)}; choose another output "
            "folder, or remove that one"
        )
    return True


@dataclass(frozen=True)
class _Run(ScoredRun):
    """A run of ``tune``: the tuned model against its base."""

    parts: DividedRows

    def result(self) -> TuningResult:
        """Do what is not yet done."""
        card = self.finished_card()
        rows, held_out = len(self.parts.train), len(self.parts.held_out)
        return TuningResult(self.student(card), card, self.folder, rows, held_out)

    @cached_property
    def scored(self) -> list[Example]:
        """The held-out rows to score."""
        return self.parts.scored()

    def prepare(self) -> None:
        """Write both parts, and tell their sizes."""
        train, held_out, scored = self.parts.train, self.parts.held_out, self.scored
        train.save(self.folder / TRAIN)
        held_out.save(self.folder / HELD_OUT)
        by = "given" if self.parts.by is None else f"held out by {self.parts.by}"
        self.say(f"1/3 {rows_text(len(train))} to train on, {len(held_out)} {by}. {precision_of(scored)}")
        if len(train) < FEW_ROWS:
            self.say("So few rows to train on teach the form of an answer, hardly the task.")
        for remark in self.parts.remarks:
            _log.warning("%s: %s", self.parts.name, remark)

    def systems(self, tuned: LoraLLM) -> Mapping[str, LoraLLM]:
        """Base and tuned model."""
        return {"base": base_of(tuned), "tuned": tuned}

    def notes(self) -> dict[str, JsonValue]:
        """Facts about the run for the report."""
        by = self.parts.by
        return {
            "title": f"{Path(self.engine.base.name).name} before and after tuning on {self.parts.name}",
            "data": self.parts.name,
            "held out": f"{rows_text(len(self.parts.held_out))}, " + ("given" if by is None else f"by {by}"),
            "remarks": "; ".join(self.parts.remarks) or "none",
            "both systems": "same prompts, grammar and limits",
        }
