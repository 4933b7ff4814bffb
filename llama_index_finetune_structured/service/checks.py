"""The check of a training file before a job is made of it: ``/v1/fine_tuning/checks``, of this server alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import anyio
from anyio import to_thread
from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field

from ..dataset.checks.problems import Problem
from ..dataset.checks.report import CheckReport
from ..errors import FinetuneStructuredError
from ..local.model.base_models import resolve
from ..local.train.settings import LoraSettings
from .app_state import blobs_of, database_of, service_settings
from .errors import ApiError, invalid
from .job_files import Method, check_job_file
from .jobs import model_columns
from .json_log import log_failure
from .keys import ApiKey, scoped
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

    async def run(self, path: Path, method: Method, base: str, settings: LoraSettings) -> CheckReport:
        """The report on a file. Raises ApiError (429) where too many checks wait."""
        if self._one.statistics().tasks_waiting >= _MOST_WAITING:
            raise ApiError(
                429,
                f"{_MOST_WAITING} checks of files wait, as many as may: try again later.",
                code="too_many_waiting",
                headers={"Retry-After": str(_RETRY_S)},
            )
        return await to_thread.run_sync(check_job_file, path, method, base, settings, limiter=self._one)


class CheckFile(BaseModel):
    """The body of ``POST /v1/fine_tuning/checks``."""

    model_config = ConfigDict(extra="forbid")

    model: Annotated[str, Field(min_length=1, max_length=200)]
    training_file: Annotated[str, Field(min_length=1, max_length=200)]
    method: Method = "supervised"


@router.post("")
async def check_file(
    request: Request, key: Annotated[ApiKey, Depends(scoped("fine_tuning"))], body: CheckFile
) -> dict[str, Any]:
    """Check every line of a file as a job of the model and method does, and count its tokens."""
    settings = service_settings(request)

    def read() -> Any:
        base_name = model_columns(request, key, body.model)["model"]
        with database_of(request).read() as connection:
            return base_name, file_of(connection, key.id, body.training_file, "training_file")

    base_name, row = await to_thread.run_sync(read)
    base = settings.bases[base_name]
    if row.bytes > _LARGEST:
        message = f"The file has {row.bytes:,} bytes; up to {_LARGEST:,} are checked here. A job checks it."
        raise invalid(message, "training_file", code="file_too_large")
    path = blobs_of(request).path(row.sha256)
    checks: FileChecks = request.app.state.checks
    try:
        report = await checks.run(path, body.method, base, settings.training)
    except FinetuneStructuredError as error:
        log_failure(error, "check")
        message = "The file cannot be checked; the server's log says why."
        raise ApiError(500, message, code="check_failed") from error
    names = {str(path): row.filename, str(resolve(base).path): base_name}
    if "/" in base:
        names[base] = base_name
    return _described(report, names) | body.model_dump()


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
