"""Calls systems with all examples, with bounded concurrency, a timeout and an answer log.

A failed call is recorded as an invalid answer; only a missing package ends the run, as nothing would be measured.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from functools import partial
from json import JSONDecodeError
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import to_jsonable_python

from ...answer_values import answer_value
from ...capture.error_text import error_text
from ...errors import ConfigurationError, MissingDependencyError, StructuredAnswerError
from ...example import canonical_json, content_hash
from ...printable import one_line
from ...progress_bar import progress_bar
from .answer_log import AnswerLog, RawAnswer
from .systems import Reply, System, ask_system, check_askable, fingerprint
from .target import ERROR_CHARACTERS, AnswerTarget
from .tracing import Tracer, tracing

__all__ = [
    "AskSettings",
    "SystemAnswers",
    "answer_all",
    "ask_systems",
    "error_fields",
    "gather_all",
    "is_unfit",
    "return_interrupt",
]


T = TypeVar("T")


@dataclass(frozen=True)
class AskSettings:
    """``concurrency`` calls at once, each at most ``timeout_s`` seconds; answers are kept in ``cache_dir``.

    Raises ConfigurationError for values that are not positive.
    """

    concurrency: int = 8
    timeout_s: float = 600.0
    cache_dir: str | Path | None = None
    show_progress: bool = True

    def __post_init__(self) -> None:
        if self.concurrency < 1 or not self.timeout_s > 0:
            raise ConfigurationError(
                f"concurrency={self.concurrency}, timeout_s={self.timeout_s}: both must be positive"
            )


@dataclass(frozen=True)
class SystemAnswers:
    """One system's answers in the order of the targets, and the wall seconds that all of them took."""

    answers: tuple[RawAnswer, ...]
    wall_seconds: float


async def ask_systems(
    systems: Mapping[str, System], targets: Sequence[AnswerTarget], asking: AskSettings
) -> dict[str, SystemAnswers]:
    """Call every system with every example, one system after the other.

    Raises ConfigurationError where there is no system or one cannot be called, before the first call.
    """
    if not systems:
        raise ConfigurationError('nothing to compare: pass systems, such as {"base": llm, "tuned": llm}')
    for name, system in systems.items():
        check_askable(name, system, targets)
    with tracing() as tracer:
        return {
            name: await _ask_all(name, system, targets, asking, tracer) for name, system in systems.items()
        }


async def _ask_all(
    name: str, system: System, targets: Sequence[AnswerTarget], asking: AskSettings, tracer: Tracer
) -> SystemAnswers:
    identity = fingerprint(system)
    keys = [_key(identity, target) for target in targets]
    calls = {
        key: partial(_answer, key, system, target, asking.timeout_s, tracer)
        for key, target in zip(keys, targets, strict=True)
    }
    return await answer_all(name, keys, calls, asking)


async def answer_all(
    name: str,
    keys: Sequence[str],
    calls: Mapping[str, Callable[[], Awaitable[RawAnswer]]],
    asking: AskSettings,
) -> SystemAnswers:
    """Make the calls whose answers the log lacks; the answers of ``keys``, equal ones of which share one call."""
    run, started = uuid.uuid4().hex, time.perf_counter()
    with AnswerLog(asking.cache_dir, name) as log:
        missing = {
            key: call for key, call in calls.items() if key not in log.answers or log.answers[key].failed
        }
        free = asyncio.Semaphore(asking.concurrency)
        with progress_bar(
            total=len(calls),
            initial=len(calls) - len(missing),
            desc=one_line(name),
            unit="answer",
            disable=not asking.show_progress,
        ) as bar:

            async def one(call: Callable[[], Awaitable[RawAnswer]]) -> None:
                async with free:
                    answer = await call()
                elapsed = time.perf_counter() - started
                log.add(answer.model_copy(update={"run": run, "elapsed_s": elapsed}))
                bar.update()

            await gather_all([one(call) for call in missing.values()])
        answers = tuple(log.answers[key] for key in keys)
    return SystemAnswers(answers, _wall_seconds(answers))


async def gather_all(jobs: list[Coroutine[Any, Any, None]]) -> None:
    """Await all jobs; where one raises (a full disk) or is interrupted, cancel the others, then raise.

    KeyboardInterrupt and SystemExit are caught within the tasks and raised after all have ended: raised inside
    a task, asyncio would raise them out of the running event loop and leave the other tasks unfinished.
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
    key: str, system: System, target: AnswerTarget, timeout_s: float, tracer: Tracer
) -> RawAnswer:
    """One call's answer; errors of the call become part of it, except interrupts and missing packages."""
    started = time.perf_counter()
    reply: Reply | BaseException = Reply(None)
    error: Exception | None = None
    with tracer.call(uuid.uuid4().hex) as trace:
        try:
            reply = await asyncio.wait_for(return_interrupt(ask_system(system, target)), timeout_s)
        except MissingDependencyError:
            raise
        except Exception as caught:
            error = caught
    if isinstance(reply, BaseException):
        raise reply
    seconds = time.perf_counter() - started
    answer = RawAnswer(
        key=key,
        example_id=target.example.id,
        seconds=seconds,
        raw_text=trace.raw_text,
        bound_hits=tuple(trace.bound_hits),
        retries=trace.retries,
        reasoning_tokens=trace.reasoning_tokens,
    )
    if error is None:
        try:
            return answer.model_copy(update=_reply_fields(reply, target))
        except Exception as caught:  # the answer has no JSON form, or its own serializer is broken
            return answer.model_copy(update=error_fields(caught, timeout_s, system))
    fields = error_fields(error, timeout_s, system)
    return answer.model_copy(update=fields | {"failed": not is_unfit(error, trace.answered)})


async def return_interrupt(job: Awaitable[T]) -> T | BaseException:
    """Interrupts are returned, since ``wait_for`` may run the job as a task of its own; see ``gather_all``."""
    try:
        return await job
    except (KeyboardInterrupt, SystemExit) as interrupt:
        return interrupt


def _reply_fields(reply: Reply, target: AnswerTarget) -> dict[str, Any]:
    """The fields of a RawAnswer that a reply fills; raises ValueError where the answer has no JSON form."""
    value = _json_value(reply.answer)
    is_object = target.output_cls is not None and isinstance(reply.answer, target.output_cls)
    fields = {"sources": reply.sources, "trust": reply.trust, "is_object": is_object}
    if isinstance(value, dict | list):
        return {"text": canonical_json(value), "value": value, **fields}
    return {"text": "" if value is None else str(value), **fields}


def _json_value(answer: Any) -> Any:
    """The answer as text, None or a JSON value; raises ValueError or TypeError for what has no JSON form."""
    if answer is None or isinstance(answer, str):
        return answer
    if isinstance(answer, BaseModel):
        value = answer_value(answer)
        return value if isinstance(value, dict | list) else canonical_json(value)
    if isinstance(answer, Mapping | list | tuple | set | frozenset | bool | int | float) or is_dataclass(
        answer
    ):
        value = to_jsonable_python(dict(answer) if isinstance(answer, Mapping) else answer)
        return value if isinstance(value, dict | list) else canonical_json(value)
    raise TypeError(
        f"the system returned {type(answer).__name__}; expected a Pydantic object, a dict or list, JSON text, or a "
        "response of LlamaIndex"
    )


def error_fields(error: Exception, timeout_s: float, system: Any) -> dict[str, Any]:
    """The text and kind of an error, as fields of a RawAnswer."""
    text = error_text(error, system)[:ERROR_CHARACTERS]
    if isinstance(error, asyncio.TimeoutError | TimeoutError) and not text:
        text = f"no answer within {timeout_s:g} s"
    return {"error": text or "(no message)", "error_kind": type(error).__name__}


def is_unfit(error: Exception, answered: bool) -> bool:
    """Whether the error tells of an answer that does not fit its schema, which is kept; else the call failed.

    LlamaIndex's parsers and programs raise ValueError and TypeError for such an answer. Where no LLM has answered,
    these have another cause, such as a damaged file, unless their own class says that an answer was read.
    """
    if isinstance(error, StructuredAnswerError | ValidationError | JSONDecodeError):
        return True
    return (
        answered and isinstance(error, ValueError | TypeError) and not isinstance(error, ConfigurationError)
    )


def _key(identity: str, target: AnswerTarget) -> str:
    """Key of one call in the log. The schema enters as text, as another key order makes another prompt.

    The class enters by its name, as an LLM raises for an answer that it refuses.
    """
    example, cls = target.example, target.output_cls
    name = None if cls is None else f"{cls.__module__}.{cls.__qualname__}"
    return content_hash([identity, example.id, example.query, json.dumps(target.schema), name])


def _wall_seconds(answers: Sequence[RawAnswer]) -> float:
    """Seconds of all runs that these answers come from, each run from its start to its last answer."""
    longest: dict[str, float] = {}
    for answer in answers:
        longest[answer.run] = max(answer.elapsed_s, longest.get(answer.run, 0.0))
    return sum(longest.values())
