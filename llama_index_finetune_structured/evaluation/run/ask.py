"""Ask one system all examples, with bounded concurrency; no answer that fails ends the run.

A missing package does: nothing would be measured.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Awaitable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from tqdm import tqdm

from ...errors import ConfigurationError, MissingDependencyError
from ...example import Example, answer_value, canonical_json, content_hash
from .answer_log import Answer, Journal
from .systems import Reply, System, ask, fingerprint
from .target import Target
from .tracing import Tracer

__all__ = ["Answers", "AskSettings", "ask_all", "gather_all"]


@dataclass(frozen=True)
class AskSettings:
    """``concurrency`` calls at once, each at most ``timeout_s`` seconds; answers kept in ``cache_dir``."""

    concurrency: int = 8
    timeout_s: float = 600.0
    cache_dir: Path | None = None
    show_progress: bool = True

    def __post_init__(self) -> None:
        if self.concurrency < 1 or self.timeout_s <= 0:
            raise ConfigurationError(
                f"concurrency={self.concurrency}, timeout_s={self.timeout_s}: both must be positive"
            )


@dataclass(frozen=True)
class Answers:
    """One answer per example, in their order, and the wall seconds spent on all of them."""

    answers: tuple[Answer, ...]
    wall_seconds: float


async def ask_all(
    name: str,
    system: System,
    examples: Sequence[Example],
    targets: Sequence[Target],
    settings: AskSettings,
    tracer: Tracer,
) -> Answers:
    """Ask what the journal does not hold yet. Equal examples are asked once."""
    mark = fingerprint(system)
    keys = [_key(mark, example, target) for example, target in zip(examples, targets, strict=True)]
    run, started = uuid.uuid4().hex, time.perf_counter()
    with Journal(settings.cache_dir, name) as journal:
        open_ = {
            key: (example, target)
            for key, example, target in zip(keys, examples, targets, strict=True)
            if key not in journal.answers or journal.answers[key].failed
        }
        kept = len(set(keys)) - len(open_)
        slots = asyncio.Semaphore(settings.concurrency)
        with tqdm(
            total=kept + len(open_),
            initial=kept,
            desc=name,
            unit="answer",
            disable=not settings.show_progress,
        ) as bar:

            async def one(key: str, example: Example, target: Target) -> None:
                async with slots:
                    answer = await _answer(key, system, example, target, settings.timeout_s, tracer)
                elapsed = time.perf_counter() - started
                journal.add(answer.model_copy(update={"run": run, "elapsed_s": elapsed}))
                bar.update()

            await gather_all([one(key, *pair) for key, pair in open_.items()])
        answers = tuple(journal.answers[key] for key in keys)
    return Answers(answers, _wall_seconds(answers))


async def gather_all(jobs: list[Coroutine[Any, Any, None]]) -> None:
    """Await all; where one raises (a full disk) or is interrupted, the others are cancelled first.

    An interrupt is held until they have ended: raised inside a task it would break out of the event loop.
    """
    interrupts: list[BaseException] = []

    async def guarded(job: Coroutine[Any, Any, None]) -> None:
        try:
            await job
        except (KeyboardInterrupt, SystemExit) as interrupt:
            interrupts.append(interrupt)
            for task in tasks:
                task.cancel()

    tasks = [asyncio.ensure_future(guarded(job)) for job in jobs]
    try:
        await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if not interrupts:
            raise
    if interrupts:
        raise interrupts[0]


async def _answer(
    key: str, system: System, example: Example, target: Target, timeout_s: float, tracer: Tracer
) -> Answer:
    started = time.perf_counter()
    reply: Reply | BaseException = Reply(None)
    error: Exception | None = None
    with tracer.call(uuid.uuid4().hex) as trace:
        try:
            reply = await asyncio.wait_for(_hold_interrupt(ask(system, example, target)), timeout_s)
        except MissingDependencyError:
            raise
        except Exception as caught:
            error = caught
    if isinstance(reply, BaseException):
        raise reply
    seconds = time.perf_counter() - started
    answer = Answer(
        key=key,
        example_id=example.id,
        seconds=seconds,
        raw_text=trace.raw_text,
        bound_hits=tuple(trace.bound_hits),
        retries=trace.retries,
    )
    if error is None:
        try:
            return answer.model_copy(update=_of_reply(reply))
        except ValueError as caught:  # an object that JSON cannot hold
            error = caught
    return answer.model_copy(update=_of_error(error, timeout_s))


async def _hold_interrupt(job: Awaitable[Reply]) -> Reply | BaseException:
    """``wait_for`` may run its job as a task; see :func:`gather_all`."""
    try:
        return await job
    except (KeyboardInterrupt, SystemExit) as interrupt:
        return interrupt


def _of_reply(reply: Reply) -> dict[str, Any]:
    given = reply.answer
    value = answer_value(given) if isinstance(given, BaseModel) else given
    if isinstance(value, dict | list):
        return {"text": canonical_json(value), "value": value, "sources": reply.sources}
    return {"text": "" if value is None else str(value), "sources": reply.sources}


def _of_error(error: Exception, timeout_s: float) -> dict[str, Any]:
    """ValueError and TypeError are what an unfit answer raises; all else failed before there was one.

    So did a ConfigurationError: a model that does not load, or a prompt that is longer than its window.
    """
    text = " ".join(str(error).split())[:500]
    if isinstance(error, asyncio.TimeoutError | TimeoutError) and not text:
        text = f"no answer within {timeout_s:g} s"
    failed = isinstance(error, ConfigurationError) or not isinstance(error, ValueError | TypeError)
    return {"error": text or "(no message)", "error_kind": type(error).__name__, "failed": failed}


def _key(mark: str, example: Example, target: Target) -> str:
    # The schema as text: in another order it is another prompt.
    return content_hash([mark, example.id, example.query, json.dumps(target.schema)])


def _wall_seconds(answers: Sequence[Answer]) -> float:
    """The runs that these answers come from, each from its start to its last answer."""
    longest: dict[str, float] = {}
    for answer in answers:
        longest[answer.run] = max(answer.elapsed_s, longest.get(answer.run, 0.0))
    return sum(longest.values())
