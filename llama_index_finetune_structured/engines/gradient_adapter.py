"""Creation of an adapter over Gradient's protocol, exactly once, and the runs that belong to a name.

The protocol has no idempotency key. An adapter is therefore a run's only by the reply to the run's own request; where
that reply is lost, the user is asked, since any adapter of the same name may be another process's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential

from ..errors import ConfigurationError, EngineError, ServiceError
from ..llms.gradient_api import GradientApi, NotDoneError
from ..printable import one_line
from .hosted.journal import Run, RunJournal, claimed, list_runs
from .timeouts import Clock

__all__ = ["NewAdapter", "next_to", "retried", "runs_of"]

T = TypeVar("T")
_ATTEMPTS = 6  # chosen: with pauses of 1, 2, 4, 8 and 16 s a short outage is waited out


def retried(clock: Clock, request: Callable[[], T], *, only_undone: bool = False) -> T:
    """The reply to ``request``, which is repeated unless it is refused.

    ``only_undone``: repeat it only where it certainly did nothing. Raises ServiceError after the last attempt.
    """

    def may_repeat(error: BaseException) -> bool:
        if only_undone:
            return isinstance(error, NotDoneError)
        return isinstance(error, ServiceError) and not error.refused

    return Retrying(
        sleep=clock.sleep,
        stop=stop_after_attempt(_ATTEMPTS),
        wait=wait_exponential(multiplier=1, max=60),
        retry=retry_if_exception(may_repeat),
        reraise=True,
    )(request)


@dataclass(frozen=True)
class NewAdapter:
    """An adapter to create: its base model's id and its name."""

    api: GradientApi
    clock: Clock
    base_id: str
    name: str

    def create_once(self, journal: RunJournal, run: Run) -> str:
        """The id of a new adapter. The intent is on disk first, and the request is sent again only if it did nothing.

        Raises ServiceError where the server refuses it, and EngineError, the question to the user, where its outcome is
        unknown.
        """
        run = journal.write(run.but(phase="submitting", known_job_ids=tuple(self._alike()), error=None))
        try:
            adapter_id = retried(
                self.clock, lambda: self.api.create_adapter(self.base_id, self.name), only_undone=True
            )
        except ServiceError as error:
            if error.refused or isinstance(error, NotDoneError):
                journal.write(run.but(phase="refused", error=str(error)))
                raise
            raise self.question(journal, run, str(error)) from error
        if not self._is_created(adapter_id, journal, run):
            reason = f"the reply describes the adapter of another request, {one_line(adapter_id)}"
            raise self.question(journal, run, reason)
        return adapter_id

    def _is_created(self, adapter_id: str, journal: RunJournal, run: Run) -> bool:
        """Whether the adapter of a reply is new and has the requested name and base model."""
        adapter = retried(self.clock, lambda: self.api.adapter(adapter_id))
        is_new = adapter_id not in run.known_job_ids and adapter_id not in claimed(journal, run)
        return is_new and (adapter.name, adapter.base_model_id) == (self.name, self.base_id)

    def question(self, journal: RunJournal, run: Run, reason: str) -> EngineError:
        """The error that asks the user which adapter is the run's. ``reason`` is written to the journal."""
        journal.write(run.but(error=reason))
        others = {*run.known_job_ids, *claimed(journal, run)}
        alike = [one_line(adapter) for adapter in self._alike() if adapter not in others]
        found = "no other adapter of its name is listed"
        if alike:
            found = f"these adapters of its name may be its own: {', '.join(alike)}"
        return EngineError(
            f"{journal.folder}: whether the adapter was created is unknown ({reason}); {found}.\n"
            "To go on with an adapter: model_adapter_id='...' in place of base_model_slug and name, "
            f"output_dir={str(journal.folder)!r}.\nIf none is this run's: resubmit=True sends the request again."
        )

    def _alike(self) -> list[str]:
        adapters = retried(self.clock, self.api.adapters)
        return [str(a.id) for a in adapters if a.name == self.name and a.base_model_id == self.base_id]


def runs_of(identity: str, own_journal: RunJournal | None) -> list[tuple[RunJournal, Run]]:
    """The runs with this identity: all known ones, or that of ``own_journal`` alone.

    Raises ConfigurationError where ``own_journal`` holds another run.
    """
    if own_journal is None:
        return [(RunJournal(folder), run) for folder, run in list_runs() if run.key == identity]
    run = own_journal.read()
    if run is None:
        return []
    if run.key != identity:
        raise ConfigurationError(
            f"{own_journal.folder}: holds another run (other host, base model or name); give another output_dir"
        )
    return [(own_journal, run)]


def next_to(first: RunJournal, number: int) -> RunJournal:
    """The journal of a further adapter of the same name, in a folder beside the first one's."""
    return RunJournal(first.folder.with_name(f"{first.folder.name}-{number}"))
