"""Random histories of submissions at an odd provider: one job for each run, or a question that names what is unclear.

A history is a sequence of runs on two machines, with faults, kills and strangers' jobs. In the end the provider
recovers, every question is answered truthfully, and every run must follow the one live job that it made.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
import openai
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from llama_index_finetune_structured.engines.hosted.engine import OpenAIFinetuneEngine
from llama_index_finetune_structured.engines.hosted.journal import RUNS_VARIABLE, Run, RunJournal
from llama_index_finetune_structured.engines.timeouts import Timeouts
from llama_index_finetune_structured.errors import EngineError
from tests.fakes.clock import FakeClock
from tests.fakes.odd_provider import FAULTS, LISTINGS, METADATA, STRANGER, KilledError, OddProvider
from tests.fakes.rows import write_rows

EPOCHS = {"two": 2, "three": 3}
RUNS = st.tuples(st.sampled_from(["here", "there"]), st.sampled_from(sorted(EPOCHS)))
QUESTION = "whether the job was made is unknown"
LONGEST_S = 3600  # a call's time limits together: settle_s and the pauses after refusals
MOST_REQUESTS = 500  # two listings of ten pages, in each search of settle_s
COUNTS = {"histories": 0, "calls": 0, "questions": 0, "kills": 0, "jobs": 0, "cancelled duplicates": 0}


class Submissions(RuleBasedStateMachine):
    """Machines ``here`` and ``there`` run the same scripts, each with a folder of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.root = Path(tempfile.mkdtemp(prefix="submissions-"))
        self.data = write_rows(self.root / "train.jsonl")
        self.started: set[tuple[str, str]] = set()
        self.asked: set[tuple[str, str]] = set()
        # A kill here ends a call, not the operating system: nothing needs to be flushed to the disk.
        self.unflushed = mock.patch.object(os, "fsync", return_value=None)
        self.unflushed.start()
        COUNTS["histories"] += 1

    @initialize(
        metadata=st.sampled_from(METADATA),
        listing=st.sampled_from(LISTINGS[:-1]) | st.sampled_from(LISTINGS),
        late_s=st.sampled_from([0, 0, 30, 90, 5000]),
    )
    def a_provider(self, metadata: str, listing: str, late_s: float) -> None:
        self.provider = OddProvider(self.clock, metadata, listing, late_s)
        self.http = httpx.Client(transport=self.provider.transport())

    # -- what happens --

    @rule(run=RUNS, fault=st.sampled_from(FAULTS), kill_at=st.none() | st.integers(0, 30))
    def a_script_runs(self, run: tuple[str, str], fault: str, kill_at: int | None) -> None:
        self.provider.job_fault, self.provider.kill_at = fault, kill_at
        self.call(run)

    @rule(run=RUNS)
    def a_script_runs_undisturbed(self, run: tuple[str, str]) -> None:
        self.call(run)

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def the_user_answers(self, data: st.DataObject) -> None:
        self.answer(data.draw(st.sampled_from(sorted(self.asked))))

    @precondition(lambda self: self.provider.files)
    @rule(epochs=st.sampled_from(sorted(EPOCHS.values())), key=st.booleans())
    def a_stranger_trains_the_same_file(self, epochs: int, key: bool) -> None:
        metadata = {"finetune_structured_run": f"{'0' * 32}-0"} if key else None
        self.provider.stranger_asks(next(iter(self.provider.files)), epochs, metadata)

    @precondition(lambda self: self.provider.jobs)
    @rule(data=st.data(), status=st.sampled_from(["succeeded", "failed", "failed", "cancelled"]))
    def a_job_ends(self, data: st.DataObject, status: str) -> None:
        job = self.provider.jobs[data.draw(st.sampled_from(sorted(self.provider.jobs)))]
        if job["status"] == "running":
            job["status"] = status

    @rule(seconds=st.sampled_from([10.0, 100.0, 10_000.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.time_s += seconds

    @precondition(lambda self: self.started)
    @rule(data=st.data())
    def a_bit_of_a_journal_flips(self, data: st.DataObject) -> None:
        run = data.draw(st.sampled_from(sorted(self.started)))
        journal = self.journal(run)
        if not journal.path.is_file():
            return
        content, before = journal.path.read_bytes(), journal.require()
        at = data.draw(st.integers(0, len(content) - 1))
        flipped = content[at] ^ (1 << data.draw(st.integers(0, 7)))
        journal.path.write_bytes(content[:at] + bytes([flipped]) + content[at + 1 :])
        jobs = len(self.provider.jobs)
        damage = self.error_of(journal.read)
        if damage is None:
            assert journal.read() == before
        else:
            assert str(journal.path) in damage
            assert self.error_of(self.engine(run).finetune) == damage
            assert len(self.provider.jobs) == jobs
        journal.path.write_bytes(content)

    # -- one process --

    def journal(self, run: tuple[str, str]) -> RunJournal:
        return RunJournal(self.root / run[0] / f"run-{run[1]}")

    def engine(self, run: tuple[str, str], **options: Any) -> OpenAIFinetuneEngine:
        self.provider.caller = run
        os.environ[RUNS_VARIABLE] = str(self.root / run[0])
        original = openai.OpenAI
        with mock.patch.object(openai, "OpenAI", lambda **given: original(**given, http_client=self.http)):
            return OpenAIFinetuneEngine(
                "gpt-4o-mini", self.data, output_dir=self.journal(run).folder, api_key=self.provider.key,
                api_base="http://provider.test/v1", hyperparameters={"n_epochs": EPOCHS[run[1]]}, validate_json=False,
                timeouts=Timeouts(clock=self.clock), **options,
            )  # fmt: skip

    def call(self, run: tuple[str, str], **options: Any) -> None:
        """One process that calls finetune() and ends, by itself, by an error or killed."""
        COUNTS["calls"] += 1
        started_s, requests = self.clock.time_s, self.provider.requests
        self.started.add(run)
        self.asked.discard(run)
        try:
            with mock.patch.object(RunJournal, "write", self.killable(RunJournal.write)):
                question = self.error_of(lambda: self.engine(run, **options).finetune())
        except KilledError:
            COUNTS["kills"] += 1
            question = None
        if question is not None:
            COUNTS["questions"] += 1
            self.asked.add(run)
            self.question_is_clear(run, question)
        self.provider.kill_at = None
        assert self.clock.time_s - started_s <= LONGEST_S
        assert self.provider.requests - requests <= MOST_REQUESTS
        self.nothing_of_others_was_touched()

    def error_of(self, call: Callable[[], object]) -> str | None:
        try:
            call()
        except EngineError as error:
            return str(error)
        return None

    def killable(self, write: Callable[[RunJournal, Run], Run]) -> Callable[[RunJournal, Run], Run]:
        def killed(journal: RunJournal, run: Run) -> Run:
            self.provider.step()
            written = write(journal, run)
            self.provider.step()
            return written

        return killed

    def question_is_clear(self, run: tuple[str, str], question: str) -> None:
        """It says how to go on, and names the run's own job where the provider lists it."""
        assert QUESTION in question
        assert "resubmit=True" in question
        assert str(self.journal(run).folder) in question
        unclear = self.unclear_job(run)
        listed = self.provider.listing in ("whole", "cyclic", "unordered")
        if unclear is not None and listed and self.provider._is_listed(unclear):
            assert f"start_job_id='{unclear}'" in question or f"{unclear}: created" in question

    def unclear_job(self, run: tuple[str, str]) -> str | None:
        """The job that a run made and does not know of, a live one first: what the user sees at the provider."""
        stored = self.journal(run).require()
        known = (stored.job_id, *stored.earlier_jobs)
        own = [key for key, maker in self.provider.makers.items() if maker == run and key not in known]
        live = [key for key in own if key in self.provider.live(lambda maker: maker == run)]
        return next(iter([*live, *own[::-1]]), None)

    def answer(self, run: tuple[str, str]) -> None:
        unclear = self.unclear_job(run)
        self.call(run, **({"start_job_id": unclear} if unclear else {"resubmit": True}))

    def nothing_of_others_was_touched(self) -> None:
        assert not self.provider.wrongs
        for run in self.started:
            stored = self.journal(run).read()
            if stored is not None and stored.job_id is not None:
                assert self.is_of(run, self.provider.makers[stored.job_id])

    def is_of(self, run: tuple[str, str], maker: tuple[str, str]) -> bool:
        """The same script on two machines is one run where the provider keeps its key."""
        return maker != STRANGER and (
            maker[1] == run[1] if self.provider.metadata == "kept" else maker == run
        )

    # -- the end --

    def teardown(self) -> None:
        try:
            if hasattr(self, "provider"):
                self.recover()
        finally:
            self.unflushed.stop()
            shutil.rmtree(self.root)

    def recover(self) -> None:
        self.provider.heal()
        self.clock.time_s += 1e6
        for run in (
            sorted(self.started) * 2
        ):  # the first round may cancel a duplicate that another machine follows
            self.call(run)
            if run in self.asked:
                self.answer(run)
                if (
                    run in self.asked
                ):  # a provider that rewrites the key: the reply of the resubmission is unclear too
                    self.answer(run)
        COUNTS["cancelled duplicates"] += self.provider.cancelled
        COUNTS["jobs"] += len(self.provider.jobs)
        for run in self.started:
            assert run not in self.asked
            self.one_job_is_left(run)
        self.http.close()

    def one_job_is_left(self, run: tuple[str, str]) -> None:
        """Of two machines' jobs that both succeeded before either was listed, both are left, and none runs."""
        live = self.provider.live(lambda maker: self.is_of(run, maker))
        done = [key for key in live if self.provider.jobs[key]["status"] == "succeeded"]
        assert len(live) - len(done) + bool(done) == 1, f"{run} has {live}, of which {done} succeeded"
        assert self.journal(run).require().job_id in (done or live)
        assert len(self.provider.live(lambda maker: maker == run)) <= 1


def histories(count: int) -> settings:
    return settings(
        max_examples=count, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
    )


def test_every_history_ends_with_one_job_a_run_or_a_clear_question() -> None:
    run_state_machine_as_test(Submissions, settings=histories(20))
    print(COUNTS)


@pytest.mark.slow
def test_two_thousand_histories_end_with_one_job_a_run_or_a_clear_question() -> None:
    run_state_machine_as_test(Submissions, settings=histories(2_000))
    print(COUNTS)
