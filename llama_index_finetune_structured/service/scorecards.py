"""Scorecards of tuned models, beside their base, on the held-out rows of their jobs; of this server alone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse
from llama_index.core.base.llms.types import ChatMessage

from ..errors import ConfigurationError, DatasetError
from ..evaluation.comparison import acompare
from ..evaluation.run.systems import System, content_text
from ..evaluation.scorecard import Scorecard
from ..example import Example
from ..files import read_json
from ..formats.wire import schema_format
from ..llms.lora import LoraLLM
from .app_state import blobs_of, database_of
from .call_queue import CallQueue
from .database import Record
from .errors import ApiError, invalid, not_found
from .job_files import Method, held_out_rows
from .jobs import find_job
from .json_log import log_failure
from .keys import ApiKey, scoped
from .models import ServedModel, models_of
from .settings import ServiceSettings
from .stored_files import file_of

__all__ = ["Scorecards", "router"]

router = APIRouter(prefix="/v1/fine_tuning/jobs/{job_id}/scorecard", tags=["fine-tuning"])
JobsKey = Annotated[ApiKey, Depends(scoped("fine_tuning"))]
_CARD, _REPORT = "scorecard.json", "report.html"
_MOST_ROWS = 200  # chosen: a rate of so many rows is known to within 7 points
_MOST_STARTED = 16
_CONCURRENCY = 4  # chosen: of 32 places, so that clients have most
_RETRY_S = 30
_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox",
    "cache-control": "no-store",
}


class Scorecards:
    """The scorecards that are being made, one at a time. Used by one event loop."""

    def __init__(self, settings: ServiceSettings) -> None:
        self._settings = settings
        self._one = asyncio.Lock()
        self._started: dict[str, asyncio.Task[None]] = {}
        self._errors: dict[str, str] = {}

    def state(self, job_id: str) -> tuple[str, str | None]:
        """The status of a job's scorecard, and the error of one that failed."""
        if job_id in self._started:
            return "running", None
        if (self._folder(job_id) / _REPORT).is_file():
            return "succeeded", None
        error = self._errors.get(job_id)
        return ("none" if error is None else "failed"), error

    def path(self, job_id: str, name: str) -> Path:
        """The file of a finished scorecard."""
        return self._folder(job_id) / name

    def start(
        self, job_id: str, held_out: Path, method: Method, systems: list[ServedModel], calls: CallQueue
    ) -> None:
        """Ask the systems the held-out rows of a job of that method.

        Raises ApiError (429) where too many are being made.
        """
        if len(self._started) >= _MOST_STARTED:
            raise ApiError(
                429,
                f"{_MOST_STARTED} scorecards are being made, as many as may: try again later.",
                code="too_many_waiting",
                headers={"Retry-After": str(_RETRY_S)},
            )
        self._errors.pop(job_id, None)
        task = asyncio.create_task(self._make(job_id, held_out, method, systems, calls))
        self._started[job_id] = task
        task.add_done_callback(lambda _: self._started.pop(job_id, None))

    async def end(self) -> None:
        """Stop those that are being made."""
        for task in list(self._started.values()):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    def _folder(self, job_id: str) -> Path:
        return self._settings.runs_folder / job_id

    async def _make(
        self, job_id: str, held_out: Path, method: Method, systems: list[ServedModel], calls: CallQueue
    ) -> None:
        try:
            async with self._one:
                await self._compare(job_id, held_out, method, systems, calls)
        except ApiError as error:
            self._errors[job_id] = str(error.detail)
        except DatasetError as error:
            self._errors[job_id] = str(error).replace(str(held_out), "the held-out file")
        except Exception as error:
            log_failure(error, f"scorecard of {job_id}")
            self._errors[job_id] = "The scorecard could not be made; the server's log says why."

    async def _compare(
        self, job_id: str, held_out: Path, method: Method, systems: list[ServedModel], calls: CallQueue
    ) -> None:
        data = (await to_thread.run_sync(held_out_rows, held_out, method))[:_MOST_ROWS]
        # Classes of clients, which rows and adapters name, are never there: their schemas judge, without a warning.
        rows = [row.model_copy(update={"answer_class": None}) for row in data]
        with ExitStack() as stack:
            llms = {model.name: await calls.enter(stack, model) for model in systems}
            have_schemas = all(row.answer_schema is not None for row in rows)
            asked: dict[str, System] = {
                name: llm.model_copy(update={"answer_classes": {}}) if have_schemas else _answers_of(llm)
                for name, llm in llms.items()
            }
            card = await acompare(asked, rows, concurrency=_CONCURRENCY, show_progress=False)
        await to_thread.run_sync(self._write, card, self._folder(job_id), systems[-1].name)

    def _write(self, card: Scorecard, folder: Path, title: str) -> None:
        """Write both files, the report last. A folder that is gone, with its model, is not made again."""
        log = read_json(folder / "training_log.json")["steps"]
        card.to_json(folder / _CARD)
        card.to_html(folder / _REPORT, title=title, training_log=log)


def _answers_of(llm: LoraLLM) -> Callable[[Example], Awaitable[str]]:
    """Asks for answers as they were trained where rows have no schema, as those of OpenAI's format."""

    async def answer(example: Example) -> str:
        messages = [
            ChatMessage(role=message.role, content=content_text(message.content))
            for message in example.messages
        ]
        schema = example.answer_schema
        asked = (
            {}
            if schema is None
            else {"response_format": schema_format(example.schema_name or "answer", schema)}
        )
        return (await llm.achat(messages, **asked)).message.content or ""

    return answer


def _cards(request: Request) -> Scorecards:
    cards: Scorecards = request.app.state.scorecards
    return cards


def _job(request: Request, key: ApiKey, job_id: str) -> Record:
    with database_of(request).read() as connection:
        return find_job(connection, key, job_id)


@router.post("")
async def make_scorecard(request: Request, key: JobsKey, job_id: str) -> dict[str, Any]:
    """Begin to score the tuned model and its base on the held-out file of a succeeded job, unless that is done."""
    job = await to_thread.run_sync(_job, request, key, job_id)
    if job.status != "succeeded":
        raise invalid(f"The job is {job.status}; expected a succeeded one.", code="invalid_job_status")
    if job.validation_file is None:
        raise invalid("The job has no held-out file: its rows are what is asked.", code="no_validation_file")
    cards = _cards(request)
    if cards.state(job_id)[0] in ("none", "failed"):
        held_out, systems = await to_thread.run_sync(_asked, request, key, job)
        if cards.state(job_id)[0] in ("none", "failed"):  # no other request began it meanwhile
            cards.start(job_id, held_out, job.method, systems, request.app.state.calls)
    return await to_thread.run_sync(_described, cards, job_id)


def _asked(request: Request, key: ApiKey, job: Record) -> tuple[Path, list[ServedModel]]:
    """The held-out file, and the base and tuned models. Raises ApiError where one of them was deleted."""
    try:
        with database_of(request).read() as connection:
            row = file_of(connection, key.id, job.validation_file)
    except ApiError as error:
        message = "The held-out file of this job was deleted, whose rows are asked: give it to a new job."
        raise ApiError(404, message, param="validation_file", code="file_not_found") from error
    systems = [models_of(request).find(name, key.id) for name in (job.model, job.fine_tuned_model)]
    return blobs_of(request).path(row.sha256), systems


@router.get("")
def retrieve_scorecard(request: Request, key: JobsKey, job_id: str) -> dict[str, Any]:
    """The status of a job's scorecard, and its figures where it is made."""
    _job(request, key, job_id)
    return _described(_cards(request), job_id)


@router.get("/report", response_class=HTMLResponse)
def download_report(request: Request, key: JobsKey, job_id: str) -> HTMLResponse:
    """The scorecard as a page of HTML, with all answers."""
    _job(request, key, job_id)
    try:
        page = _cards(request).path(job_id, _REPORT).read_text(encoding="utf-8")
    except OSError:
        raise not_found("scorecard", job_id) from None
    return HTMLResponse(
        page, headers=_HEADERS | {"content-disposition": f"attachment; filename={job_id}.html"}
    )


def _described(cards: Scorecards, job_id: str) -> dict[str, Any]:
    status, error = cards.state(job_id)
    reply: dict[str, Any] = {"object": "fine_tuning.job.scorecard", "job_id": job_id}
    if status == "succeeded":
        try:
            card = Scorecard.from_json(cards.path(job_id, _CARD))
        except ConfigurationError:  # the model was deleted in between
            status = "none"
        else:
            reply |= _figures(card)
    return {**reply, "status": status, "error": error}


def _figures(card: Scorecard) -> dict[str, Any]:
    names = ("schema_valid", "exact_match", "field_score")
    systems = [
        {
            "model": model,
            **{name: _interval(score, name) for name in names},
            "seconds_per_answer": score.seconds_per_answer,
            "fields": {path: field.headline for path, field in score.fields.items()},
        }
        for model, score in card.systems.items()
    ]
    return {
        "verdict": card.verdict(),
        "rows": len(card.rows),
        "left_out": len(card.left_out),
        "systems": systems,
    }


def _interval(score: Any, name: str) -> dict[str, float]:
    """A rate with the ends of its 95% interval, where it has one."""
    found = score.intervals.get(name)
    if found is None:
        return {"rate": getattr(score, name)}
    return {"rate": found.rate, "low": found.low, "high": found.high}
