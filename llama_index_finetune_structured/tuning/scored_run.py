"""Training and scoring in a run's folder. Each step reads what an earlier call has left there, and goes on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, JsonValue

from ..engines.lora import LoraFinetuneEngine
from ..engines.start_adapter import ROWS_FILE
from ..errors import ConfigurationError
from ..evaluation.calibration import with_calibrations
from ..evaluation.comparison import compare
from ..evaluation.scorecard import Scorecard
from ..example import Example, content_hash
from ..files import read_json
from ..llms.lora import LoraLLM
from ..local.model.adapter import read_card
from .rows import rows_text

__all__ = ["ANSWERS", "HELD_OUT", "REPORT", "SCORECARD", "TRAIN", "WRITTEN", "ScoredRun"]

TRAIN, HELD_OUT = ROWS_FILE, "validation.jsonl"
SCORECARD, REPORT, ANSWERS = "scorecard.json", "report.html", "answers"
WRITTEN = ("adapter", "checkpoints", "run.json", "training_log.json", TRAIN, HELD_OUT, SCORECARD, REPORT)
"""Without the folder of answers, where nothing is replaced: it holds the run's lock, which is there first."""


@dataclass(frozen=True)
class ScoredRun(ABC):
    """A run in its folder, whose lock is held."""

    engine: LoraFinetuneEngine
    output_cls: type[BaseModel] | None
    folder: Path
    say: Callable[[str], None]

    @property
    @abstractmethod
    def scored(self) -> list[Example]:
        """The rows to score."""

    @abstractmethod
    def prepare(self) -> None:
        """Write the rows to train on, and tell their number."""

    @abstractmethod
    def systems(self, tuned: LoraLLM) -> Mapping[str, LoraLLM]:
        """The models to compare, the tuned one last."""

    @abstractmethod
    def notes(self) -> dict[str, JsonValue]:
        """Facts about the run for the report, its ``title`` among them."""

    def finished_card(self) -> Scorecard:
        """Do what is not yet done; the scorecard."""
        is_trained = self.engine.get_current_job().status == "succeeded"
        card = self._stored_card() if is_trained else None
        if card is None:
            self.prepare()
            if not is_trained:
                self.say(f"2/3 Training {self.engine.base.name}")
                self.engine.finetune()
            card = self._card()
        if not (self.folder / REPORT).exists():
            self._write_report(card)
        return card

    def _stored_card(self) -> Scorecard | None:
        """The scorecard of this run's adapter; None where it is missing, damaged, or a model gave no answer."""
        with suppress(ConfigurationError):
            card = Scorecard.from_json(self.folder / SCORECARD)
            if card.settings.get("adapter") == self._adapter and not card.unanswered:
                return card
        return None

    @property
    def _adapter(self) -> str:
        """Hash of the adapter: answers and scorecard belong to it."""
        return content_hash(dict(read_card(self.engine.adapter).files))[:12]

    def student(self, card: Scorecard) -> LoraLLM:
        """The tuned model, whose probabilities are fitted to the scored rows, now or by an earlier call."""
        tuned = self.engine.get_finetuned_model()
        name = list(card.systems)[-1]
        if tuned.calibrations or name not in card.trust:
            return tuned
        files = read_card(self.engine.adapter).files
        return with_calibrations(tuned, card.rows, name, self.scored, self.output_cls, files)

    def _card(self) -> Scorecard:
        tuned = self.engine.get_finetuned_model()
        systems = self.systems(tuned)
        self.say(f"3/3 Scoring {' and '.join(systems)} on {rows_text(len(self.scored))}")
        card = compare(
            systems,
            self.scored,
            output_cls=self.output_cls,
            concurrency=tuned.batch_size,
            cache_dir=self.folder / ANSWERS / self._adapter,
            notes={**self._facts(), **self.notes()},
        )
        self._write_report(card)
        card.to_json(self.folder / SCORECARD)  # last: the run is finished with it
        return card

    def _write_report(self, card: Scorecard) -> None:
        log = read_json(self.folder / "training_log.json")["steps"]
        card.to_html(self.folder / REPORT, title=str(card.settings["title"]), training_log=log)

    def _facts(self) -> dict[str, JsonValue]:
        job = self.engine.get_current_job()
        return {
            "run": str(self.folder.resolve()),
            "trained on": (
                f"{rows_text(len(self.engine.examples))}, {job.steps} steps in {job.seconds:.0f} s"
            ),
            "seed": self.engine.config.seed,
            "adapter": self._adapter,
        }
