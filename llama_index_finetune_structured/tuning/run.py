"""``tune``: training data in; a tuned model out, scored with its base on held-out rows.

A run's folder is that of the training engine, with the split, the answers, the scorecard and the report beside the
adapter. Each step reads what an earlier call has left there, so that the same call goes on where that one stopped.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, JsonValue, ValidationError

from ..checksums import read_checked_json, with_checksum
from ..dataset import FinetuneDataset
from ..engines.lora import LoraFinetuneEngine
from ..errors import ConfigurationError
from ..evaluation.calibration import with_calibrations
from ..evaluation.comparison import compare
from ..evaluation.scorecard import Scorecard
from ..example import Example, content_hash
from ..files import read_json, write_json
from ..llms.lora import LoraLLM
from ..local.model.adapter import read_card
from ..local.model.base_models import DEFAULT_BASE_MODEL, resolve
from ..local.model.prompts import DEFAULT_SCHEMA_PROMPT
from ..local.train.distributed import DistributedRun
from ..local.train.settings import LoraSettings
from ..locks import locked_folder
from ..printable import package_logger
from ..progress_bar import progress_line
from .rows import FEW_ROWS, DividedRows, Rows, precision_of, rows_text

__all__ = ["TuningResult", "base_of", "run_tuning", "tune"]

_log = package_logger(__name__)

_OUTPUT = Path("tune-output")
_RECORD, _TRAIN, _HELD_OUT = "tuning.json", "train.jsonl", "validation.jsonl"
_TUNED = "tuned"  # name of the tuned model in the scorecard
_SCORECARD, _REPORT, _ANSWERS = "scorecard.json", "report.html", "answers"
# Without the folder of answers, where nothing is replaced: it holds the run's lock, which is there first.
_WRITTEN = ("adapter", "checkpoints", "run.json", "training_log.json", _TRAIN, _HELD_OUT, _SCORECARD, _REPORT)


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
        return self.folder / _SCORECARD

    @property
    def report_path(self) -> Path:
        """The report's HTML page."""
        return self.folder / _REPORT

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
    config = _settings(minutes, seed)
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
    with locked_folder(folder / _ANSWERS):
        if not _holds(folder, identity):
            write_json(folder / _RECORD, with_checksum(identity))
        engine = LoraFinetuneEngine(parts.train, base_model=base_model, output_dir=folder, config=config)
        return _Run(engine, parts, output_cls, folder, say).result()


def base_of(tuned: LoraLLM) -> LoraLLM:
    """The base of a tuned model, with the same limits and grammar, to compare it with.

    Prompts are the same too, but for a schema that only the tuned model knows without reading it.
    """
    settings = ("base_model", "max_new_tokens", "batch_size", "chat_prompts", "constrained", "schema_prompt")
    same = tuned.model_dump(include={*settings, "answers", "windows", "grounded"})
    if same["schema_prompt"] == "none":
        same["schema_prompt"] = DEFAULT_SCHEMA_PROMPT
    return LoraLLM(**same, bounds=tuned.bounds, list_rules=tuned.list_rules)


def _settings(minutes: float | None, seed: int) -> LoraSettings:
    options: dict[str, Any] = {"seed": seed} if minutes is None else {"seed": seed, "minutes": minutes}
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
    path = folder / _RECORD
    try:
        there = read_checked_json(path)
    except FileNotFoundError:
        if found := [name for name in _WRITTEN if os.path.lexists(folder / name)]:
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
class _Run:
    """A run in its folder, whose lock is held."""

    engine: LoraFinetuneEngine
    parts: DividedRows
    output_cls: type[BaseModel] | None
    folder: Path
    say: Callable[[str], None]

    def result(self) -> TuningResult:
        """Do what is not yet done."""
        is_trained = self.engine.get_current_job().status == "succeeded"
        card = self._stored_card() if is_trained else None
        scored: list[Example] | None = None
        if card is None:
            scored = self._prepared()
            if not is_trained:
                self.say(f"2/3 Training {self.engine.base.name}")
                self.engine.finetune()
            card = self._card(scored)
        if not (self.folder / _REPORT).exists():
            self._write_report(card)
        rows, held_out = len(self.parts.train), len(self.parts.held_out)
        return TuningResult(self._calibrated(card, scored), card, self.folder, rows, held_out)

    def _calibrated(self, card: Scorecard, scored: list[Example] | None) -> LoraLLM:
        """The tuned model, whose probabilities were fitted to the scored rows, now or by an earlier call."""
        tuned = self.engine.get_finetuned_model()
        if tuned.calibrations or _TUNED not in card.trust:
            return tuned
        scored = self.parts.scored() if scored is None else scored
        files = read_card(self.engine.adapter).files
        return with_calibrations(tuned, card.rows, _TUNED, scored, self.output_cls, files)

    def _prepared(self) -> list[Example]:
        """The rows to score; both parts are written, and their sizes told."""
        train, held_out = self.parts.train, self.parts.held_out
        scored = self.parts.scored()
        train.save(self.folder / _TRAIN)
        held_out.save(self.folder / _HELD_OUT)
        by = "given" if self.parts.by is None else f"held out by {self.parts.by}"
        self.say(f"1/3 {rows_text(len(train))} to train on, {len(held_out)} {by}. {precision_of(scored)}")
        if len(train) < FEW_ROWS:
            self.say("So few rows to train on teach the form of an answer, hardly the task.")
        for remark in self.parts.remarks:
            _log.warning("%s: %s", self.parts.name, remark)
        return scored

    def _stored_card(self) -> Scorecard | None:
        """The scorecard of this run's adapter; None where it is missing, damaged, or a model gave no answer."""
        with suppress(ConfigurationError):
            card = Scorecard.from_json(self.folder / _SCORECARD)
            if card.settings.get("adapter") == self._adapter and not card.unanswered:
                return card
        return None

    @property
    def _adapter(self) -> str:
        """Hash of the adapter: answers and scorecard belong to it."""
        return content_hash(dict(read_card(self.engine.adapter).files))[:12]

    def _card(self, scored: list[Example]) -> Scorecard:
        self.say(f"3/3 Scoring base and tuned model on {rows_text(len(scored))}")
        tuned = self.engine.get_finetuned_model()
        card = compare(
            {"base": base_of(tuned), _TUNED: tuned},
            scored,
            output_cls=self.output_cls,
            concurrency=tuned.batch_size,
            cache_dir=self.folder / _ANSWERS / self._adapter,
            notes=self._notes(),
        )
        self._write_report(card)
        card.to_json(self.folder / _SCORECARD)  # last: the run is finished with it
        return card

    def _write_report(self, card: Scorecard) -> None:
        log = read_json(self.folder / "training_log.json")["steps"]
        card.to_html(self.folder / _REPORT, title=str(card.settings["title"]), training_log=log)

    def _notes(self) -> dict[str, JsonValue]:
        job = self.engine.get_current_job()
        by = self.parts.by
        return {
            "title": f"{Path(self.engine.base.name).name} before and after tuning on {self.parts.name}",
            "run": str(self.folder.resolve()),
            "data": self.parts.name,
            "trained on": f"{rows_text(len(self.parts.train))}, {job.steps} steps in {job.seconds:.0f} s",
            "held out": f"{rows_text(len(self.parts.held_out))}, " + ("given" if by is None else f"by {by}"),
            "remarks": "; ".join(self.parts.remarks) or "none",
            "both systems": "same prompts, grammar and limits",
            "seed": self.engine.config.seed,
            "adapter": self._adapter,
        }
