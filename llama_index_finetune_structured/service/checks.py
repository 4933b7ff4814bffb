"""The check of a training file before a job is made of it: ``/v1/fine_tuning/checks``, of this server alone."""

from __future__ import annotations

from typing import Annotated, Any

import anyio
from anyio import to_thread
from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field

from ..dataset.checks.problems import Problem
from ..dataset.checks.report import CheckReport, check
from ..errors import FinetuneStructuredError
from ..local.model.base_models import resolve
from .app_state import blobs_of, database_of, service_settings
from .errors import ApiError, invalid, not_found
from .json_log import log_failure
from .keys import ApiKey, scoped
from .models import ModelStore
from .stored_files import file_of

__all__ = ["FileChecks", "router"]

router = APIRouter(prefix="/v1/fine_tuning/checks", tags=["fine-tuning"])
_LARGEST = 64 << 20  # chosen: bytes that are checked within a request's time; a job checks files of any size
_MOST_WAITING = 8
_MOST_PROBLEMS = 200  # chosen: that a reply names
_RETRY_S = 10


class FileChecks:
    """The checks of a process, one at a time: each takes a processor, which answers take too."""

    def __init__(self) -> None:
        self._one = anyio.CapacityLimiter(1)

    async def run(self, path: str, options: dict[str, Any]) -> CheckReport:
        """The report on a file. Raises ApiError (429) where too many checks wait."""
        if self._one.statistics().tasks_waiting >= _MOST_WAITING:
            raise ApiError(
                429,
                f"{_MOST_WAITING} checks of files wait, as many as may: try again later.",
                code="too_many_waiting",
                headers={"Retry-After": str(_RETRY_S)},
            )
        return await to_thread.run_sync(lambda: check(path, **options), limiter=self._one)


class CheckFile(BaseModel):
    """The body of ``POST /v1/fine_tuning/checks``."""

    model_config = ConfigDict(extra="forbid")

    model: Annotated[str, Field(min_length=1, max_length=200)]
    training_file: Annotated[str, Field(min_length=1, max_length=200)]


@router.post("")
async def check_file(
    request: Request, key: Annotated[ApiKey, Depends(scoped("fine_tuning"))], body: CheckFile
) -> dict[str, Any]:
    """Check every line of a file as a job on the model does, and count its tokens."""
    settings = service_settings(request)
    store: ModelStore = request.app.state.models
    store.refuse_embedding_model(body.model)
    if (base := settings.bases.get(body.model)) is None:
        raise not_found("model", body.model, "model")

    def read() -> Any:
        with database_of(request).read() as connection:
            return file_of(connection, key.id, body.training_file, "training_file")

    row = await to_thread.run_sync(read)
    if row.bytes > _LARGEST:
        message = f"The file has {row.bytes:,} bytes; up to {_LARGEST:,} are checked here. A job checks it."
        raise invalid(message, "training_file", code="file_too_large")
    shared = settings.training
    options = {
        "base_model": base,
        "max_length": shared.max_length,
        "schema_prompt": shared.schema_prompt,
        "thinking": shared.thinking,
    }
    path = str(blobs_of(request).path(row.sha256))
    checks: FileChecks = request.app.state.checks
    try:
        report = await checks.run(path, options)
    except FinetuneStructuredError as error:
        log_failure(error, "check")
        message = "The file cannot be checked; the server's log says why."
        raise ApiError(500, message, code="check_failed") from error
    names = {path: row.filename, str(resolve(base).path): body.model}
    if "/" in base:
        names[base] = body.model
    return _described(report, names) | {"model": body.model, "training_file": body.training_file}


def _described(report: CheckReport, names: dict[str, str]) -> dict[str, Any]:
    """The report without this machine's paths, which ``names`` has names for; the errors come first."""
    found = sorted(report.problems, key=lambda problem: problem.is_warning)
    return {
        "object": "fine_tuning.check",
        "ok": report.ok,
        "lines": report.lines,
        "good_lines": report.good,
        "tokens": report.tokens,
        "trained_tokens": report.trained_tokens,
        "longest_tokens": report.longest_tokens,
        "n_epochs": report.epochs,
        "memory": None if report.memory is None else report.memory.summary,
        "errors": sum(not problem.is_warning for problem in found),
        "warnings": sum(problem.is_warning for problem in found),
        "problems": [_problem(problem, names) for problem in found[:_MOST_PROBLEMS]],
    }


def _problem(problem: Problem, names: dict[str, str]) -> dict[str, Any]:
    message = problem.message
    for path, name in names.items():
        message = message.replace(path, name)
    level = "warning" if problem.is_warning else "error"
    return {
        "line": problem.line,
        "level": level,
        "code": problem.code,
        "message": message,
        "fix": problem.fix,
    }
