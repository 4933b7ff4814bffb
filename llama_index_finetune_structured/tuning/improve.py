"""``improve``: a finished run and newly captured rows in; a new version out, which serves where it is not worse.

The held-out rows of the run stay as they are: every version is scored on the same ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, JsonValue

from ..checksums import with_checksum
from ..dataset import FinetuneDataset
from ..dataset.checks.targets import target_named
from ..dataset.splits import document_of
from ..engines.lora import LoraFinetuneEngine
from ..errors import ConfigurationError, DatasetError
from ..evaluation.scorecard import Scorecard
from ..example import Example
from ..files import write_json
from ..llms.lora import LoraLLM
from ..local.model.adapter import find_adapter, read_card
from ..local.model.base_models import BaseModelFiles, resolve
from ..local.model.prompts import prompt_form_of
from ..local.model.versions import VERSIONS, read_history, version_folder, version_names
from ..local.train.distributed import DistributedRun
from ..local.train.settings import LoraSettings
from ..locks import locked_folder
from ..printable import package_logger
from ..progress_bar import progress_line
from .new_rows import NewRows
from .promotion import CANDIDATE, CURRENT, Decision, least_margin, points
from .rows import Rows, RowSource, precision_of, require_schemas, rows_text
from .run import settings_of_run
from .scored_run import ANSWERS, HELD_OUT, REPORT, SCORECARD, TRAIN, ScoredRun
from .tuned_run import IMPROVEMENT, TunedRun, hash_of, read_record
from .versions import begin_history, promote

__all__ = ["MARGIN", "Improvement", "Start", "improve", "run_improvement"]

_log = package_logger(__name__)

MARGIN = 0.02
Start = Literal["base", "current"]


@dataclass(frozen=True)
class Improvement:
    """What ``improve`` has made.

    Attributes:
        version: Name of the new version.
        folder: Its folder, that of a whole run.
        promoted: Whether it was promoted: it serves since, unless a later version or ``rollback`` took its place.
        reason: Why it was promoted or not, with the figures.
        serves: Name of the version that serves now.
        scorecard: The version that served ("current") and the new one ("candidate") on the same held-out rows.
        taken: Captured rows that it was trained on, besides those of the version before.
        left_out: Reason -> captured rows that were left out for it.
    """

    version: str
    folder: Path
    promoted: bool
    reason: str
    serves: str
    scorecard: Scorecard
    taken: int
    left_out: Mapping[str, int]

    def lines(self) -> Iterator[str]:
        """The result in words: what was decided and why, what failed, and where the files are."""
        serves = self.serves == self.version
        is_or_was = "was" if self.promoted and not serves else "is"
        yield f"Version {self.version} {is_or_was} {'' if self.promoted else 'not '}promoted: {self.reason}."
        if not serves:
            yield f"Version {self.serves} serves."
        yield from self.scorecard.problems()
        yield f"Report: {self.folder / REPORT}"


def improve(
    run: str | Path,
    capture: FinetuneDataset | str | Path | Iterable[Example],
    *,
    margin: float = MARGIN,
    minutes: float | None = None,
    output_cls: type[BaseModel] | None = None,
    base_model: str | Path | None = None,
    start_from: Start = "base",
) -> Improvement:
    """Train a new version of a run of ``tune`` on its rows and new ones, and let it serve unless it may be worse.

    The rows of the version that serves and the new rows of ``capture`` train a new student, from the base model. Left
    out are captured rows that are held out, or of a document or question that is, or near-duplicates of held-out rows
    or of those trained on. Both students answer the run's held-out rows, the same ones for every version. The new one
    is promoted where the lower end of the 95% interval of the difference in field score is at least ``-margin``.

    Versions are whole runs, in ``run/versions/0002`` and so on; the first is the run itself. ``current.json`` names
    the one that serves: ``LoraLLM.from_adapter(run)`` loads it, ``FollowingLoraLLM`` changes to it while it runs, and
    ``rollback(run)`` goes back. The same call resumes one that was stopped, and returns at once where it is finished.
    Rows that were captured after it had begun are left for the next one.

    Args:
        run: The folder of a finished run of ``tune``.
        capture: New rows, such as those that a teacher answered, in any form of ``data`` of ``tune``.
        margin: How much worse the field score may be, from 0 to 1. 0.02 by default: few users notice two more wrong
            fields of a hundred, and with 0 a student that is as good would hardly ever pass.
        minutes: Minutes that training may take. None: as in the run.
        output_cls: Class of the answers; the run's, where it was tuned with one.
        base_model: Location of the base model, if it moved after the run.
        start_from: "base": the new version is trained from the base model, on all rows. "current": it goes on from the
            adapter of the version that serves, on the new rows and as many old ones, which takes a fraction of the
            steps; see ``start_from`` of ``LoraFinetuneEngine``.

    Raises:
        DatasetError: Rows cannot be read or trained on, in the words of ``check``, or none of them is new.
        ConfigurationError: ``run`` is no finished run, or was tuned with another class; files of it are damaged; a
            setting is out of range; or this is one of several processes.
        EngineError: Another process works in ``run``, or training failed, as ``finetune()`` raises it.
        MissingDependencyError: The extra ``local`` is not installed.
    """
    try:
        done = run_improvement(
            run,
            capture,
            margin=margin,
            minutes=minutes,
            output_cls=output_cls,
            base_model=base_model,
            start_from=start_from,
            say=progress_line,
        )
    except KeyboardInterrupt:
        progress_line("Stopped. What was finished is kept: the same call goes on from there.")
        raise
    for line in done.lines():
        progress_line(line)
    return done


def run_improvement(
    run: str | Path,
    capture: Rows,
    *,
    margin: float,
    minutes: float | None,
    output_cls: type[BaseModel] | None,
    base_model: str | Path | None,
    start_from: Start,
    say: Callable[[str], None],
) -> Improvement:
    """See ``improve``, of which this is all; ``say`` takes its messages."""
    if DistributedRun().world_size > 1:
        raise ConfigurationError("improve() runs in one process, and this is one of several: call it in one")
    if not (math.isfinite(margin) and 0 <= margin <= 1):
        raise ConfigurationError(
            f"margin: {margin!r}, expected a number from 0 to 1 (0.02: two points of a hundred)"
        )
    if start_from not in get_args(Start):
        raise ConfigurationError(f"start_from: {start_from!r}, expected 'base' or 'current'")
    tuned = TunedRun.read(Path(run), output_cls)
    source = RowSource.of(capture, output_cls)
    with locked_folder(tuned.folder / ANSWERS):
        current = begin_history(tuned.folder)[-1].version
        card = read_card(find_adapter(version_folder(tuned.folder, current) / "adapter"))
        base = resolve(base_model or card.base_model)
        settings = settings_of_run(tuned.record, minutes)
        work = _Improving(tuned, source, current, base, settings, output_cls, margin, say, start_from)
        return work.result()


@dataclass(frozen=True)
class _Improving:
    """One call of ``improve``; the lock of the run's folder is held."""

    run: TunedRun
    source: RowSource
    current: str
    base: BaseModelFiles
    settings: LoraSettings
    output_cls: type[BaseModel] | None
    margin: float
    say: Callable[[str], None]
    start_from: Start

    def result(self) -> Improvement:
        """Find or begin the version of these rows, train and score it, and decide."""
        version = self._begun() or self._begin()
        folder = version_folder(self.run.folder, version)
        record = read_record(folder)
        engine = self._engine(version, record["from"])
        rows = NewRows(record["taken"], record["left out"])
        candidate = _Candidate(
            engine, self.output_cls, folder, self.say, self.run, version, record["from"], self.margin, rows
        )
        card = candidate.finished_card()
        candidate.student(card)  # calibrated before it may serve
        promoted, reason = self._decided(version, card)
        return Improvement(
            version,
            folder,
            promoted,
            reason,
            read_history(self.run.folder)[-1].version,
            card,
            rows.taken,
            rows.left_out,
        )

    def _engine(self, version: str, before: str) -> LoraFinetuneEngine:
        folder, rows = version_folder(self.run.folder, version), self.run.train(version)
        options: dict[str, Any] = {
            "base_model": self.base.name,
            "output_dir": folder,
            "config": self.settings,
        }
        if self.start_from == "base":
            return LoraFinetuneEngine(rows, **options)
        old = self.run.train(before)
        known = {row.id for row in old}
        new = [row for row in rows if row.id not in known]
        start = version_folder(self.run.folder, before) / "adapter"
        return LoraFinetuneEngine(new, start_from=start, replay=old, **options)

    @property
    def _options(self) -> dict[str, Any]:
        """What a version is made with besides its rows."""
        return {
            "output_cls": self.run.record["output_cls"],
            "base model": self.base.sha256,
            "start from": self.start_from,
            **self.settings.model_dump(mode="json", exclude={"checkpoint_steps"}),
        }

    def _begun(self) -> str | None:
        """The version that an earlier call with these rows has begun or finished; None where there is none.

        A capture may have grown since a call that was stopped: its rows are then still in it.
        """
        served = {entry.version for entry in read_history(self.run.folder)}
        for version in reversed(version_names(self.run.folder)):
            folder = version_folder(self.run.folder, version)
            if not (folder / IMPROVEMENT).exists():
                continue
            record = read_record(folder)
            if any(record.get(name) != value for name, value in self._options.items()):
                continue
            same = record["capture"] == hash_of(self.source.examples)
            if same and version in served:
                return version
            if record["from"] == self.current and (same or self._goes_on(version)):
                return version
        return None

    def _goes_on(self, version: str) -> bool:
        """Whether a version is not finished, and all of its new rows are in the capture."""
        if (version_folder(self.run.folder, version) / SCORECARD).exists():
            return False
        old = {row.id for row in self.run.train(self.current)}
        return {row.id for row in self.run.train(version)} - old <= {row.id for row in self.source.examples}

    def _begin(self) -> str:
        """Write the rows of a new version, and then its record, with which it has begun. Raises DatasetError."""
        old, held_out = self.run.train(self.current), self.run.held_out()
        new = NewRows.of(self.source.examples, list(old), list(held_out))
        if not new.rows:
            raise DatasetError(
                f"{self.source.name}: has nothing new to train on: {new}; capture other answers, and call again"
            )
        require_schemas(self.source.name, "new rows", new.rows)
        train = FinetuneDataset([*old, *new.rows])
        form = prompt_form_of(train, *self.settings.prompts)
        self.source.check(target_named("local", self.base.name, self.settings.max_length, form))
        version = _free_version(self.run.folder)
        folder = version_folder(self.run.folder, version)
        train.save(folder / TRAIN)
        held_out.save(folder / HELD_OUT)
        record = {
            "from": self.current,
            "capture": hash_of(self.source.examples),
            "data": hash_of(train),
            "taken": new.taken,
            "left out": dict(new.left_out),
            **self._options,
        }
        write_json(folder / IMPROVEMENT, with_checksum(record))
        self._remark_on_documents(new, held_out)
        return version

    def _remark_on_documents(self, new: NewRows, held_out: FinetuneDataset) -> None:
        unnamed = sum(document_of(row) is None for row in new.rows)
        if unnamed and all(row.document_id is not None for row in held_out):
            _log.warning(
                "%s: %d of %d new rows name no document, so that they may be of a held-out one, which flatters the "
                "figures; set document_id of every row",
                self.source.name,
                unnamed,
                new.taken,
            )

    def _decided(self, version: str, card: Scorecard) -> tuple[bool, str]:
        """Promote the version if it may be; whether it was, now or earlier, and why."""
        run = self.run.folder
        for entry in read_history(run):
            if entry.version == version:
                return True, entry.reason
        decision = Decision.of(card, self.margin)
        if not decision.promotes:
            return False, decision.reason
        if promote(run, version, instead_of=self.current, reason=decision.reason):
            return True, decision.reason
        return False, (
            f"version {self.current}, with which it was compared, does not serve any more; call again to compare with "
            "the one that does"
        )


def _free_version(run: Path) -> str:
    """The name of a new version: that of a folder in which a killed call had only begun to write rows, or the next."""
    names, served = version_names(run), {entry.version for entry in read_history(run)}
    if names and names[-1] not in served:
        folder = run / VERSIONS / names[-1]
        if {path.name for path in folder.iterdir() if not path.name.startswith(".")} <= {TRAIN, HELD_OUT}:
            return names[-1]
    return f"{max(map(int, (*names, *served))) + 1:04}"  # never the name of one that served and was removed


@dataclass(frozen=True)
class _Candidate(ScoredRun):
    """A new version: its student against that of the version that serves."""

    run: TunedRun
    version: str
    current: str
    margin: float
    rows: NewRows

    @cached_property
    def _first(self) -> Scorecard:
        return Scorecard.from_json(self.run.folder / SCORECARD)

    @cached_property
    def scored(self) -> list[Example]:
        """The held-out rows that the first version was scored on."""
        ids = {row.example_id for row in self._first.rows}
        return [row for row in self.run.held_out() if row.id in ids]

    def prepare(self) -> None:
        """Tell the numbers of rows, which are written already."""
        self.say(
            f"1/3 {self.rows}. {rows_text(len(self.engine.examples))} to train on with those of version "
            f"{self.current}. {precision_of(self.scored)}"
        )
        if (least := least_margin(self._first)) > self.margin:
            self.say(
                f"Held-out rows are few: a student with equal answers could be {points(least)} worse for all that they "
                f"tell, more than the margin of {points(self.margin)}, so that only a better one can be promoted. Hold "
                "out more rows, or allow more with margin="
            )

    def systems(self, tuned: LoraLLM) -> Mapping[str, LoraLLM]:
        """The student that serves, and the new one."""
        adapter = version_folder(self.run.folder, self.current) / "adapter"
        return {CURRENT: LoraLLM.from_adapter(adapter, base_model=self.engine.base.name), CANDIDATE: tuned}

    def notes(self) -> dict[str, JsonValue]:
        """Facts about the version for the report."""
        return {
            "title": f"Version {self.version} of {self.run.folder.resolve().name} against version {self.current}",
            "new rows": str(self.rows),
            "held out": "the rows of the first version",
            "both systems": "each asked as it was trained",
        }
