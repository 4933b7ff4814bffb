"""Errors in the shape of OpenAI's: ``{"error": {"message", "type", "param", "code"}}``, and how all others become one.

No client sees the text of an exception that was not made for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from ..printable import one_line, printable
from .gradient_errors import API_PREFIX, gradient_error_body

__all__ = [
    "ApiError",
    "ErrorReply",
    "add_error_handlers",
    "error_body",
    "internal_error",
    "invalid",
    "not_found",
]

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
_MOST_TEXT = 20_000  # chosen: a check's report of a training file is long


class _ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(BaseModel):
    """The body of every reply of an error, for the description of the API."""

    error: _ErrorDetail


class ApiError(HTTPException):
    """An error whose text is for the client.

    ``param``: the field that is wrong, as ``method.supervised.hyperparameters.n_epochs``. ``code``: what programs
    tell errors by. ``type``: OpenAI's class of the error; None: by the status.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        type: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, dict(headers) if headers else None)
        self.param, self.code = param, code
        self.type = (
            type or _TYPES.get(status) or ("server_error" if status >= 500 else "invalid_request_error")
        )


def invalid(message: str, param: str | None = None, *, code: str | None = None) -> ApiError:
    """The error of a request that cannot be right, whenever it is sent."""
    return ApiError(400, message, param=param, code=code)


def not_found(what: str, name: str, param: str | None = None) -> ApiError:
    """The error for an id that the key has nothing under; that of another key's is the same."""
    return ApiError(404, f"No such {what}: {one_line(name)[:200]!r}", param=param, code=f"{what}_not_found")


def error_body(error: ApiError, path: str = "") -> dict[str, Any]:
    """The body of a reply to a request of ``path``. All of its text is printable, which no encoding refuses."""
    if path.startswith(f"{API_PREFIX}/"):
        return gradient_error_body(error.status_code, error.type, str(error.detail)[:_MOST_TEXT])
    param = None if error.param is None else printable(error.param)[:200]
    message = printable(str(error.detail))[:_MOST_TEXT]
    return {"error": {"message": message, "type": error.type, "param": param, "code": error.code}}


def add_error_handlers(app: FastAPI) -> None:
    """Make every error of the application, of FastAPI and of Starlette one of OpenAI's shape."""
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _validation_error)


def _reply(request: Request, error: ApiError) -> JSONResponse:
    return JSONResponse(error_body(error, request.url.path), error.status_code, error.headers)


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    if isinstance(error, ApiError):
        return _reply(request, error)
    assert isinstance(error, HTTPException)
    return _reply(request, ApiError(error.status_code, str(error.detail), headers=error.headers))


async def _validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first, *others = error.errors()
    param = _field(first["loc"], error.body)
    expected = first["msg"]
    if first["type"] == "literal_error":  # of a union of the text 'auto' and what its other branch says
        branches = (other["msg"] for other in others if _field(other["loc"], error.body) == param)
        if branch := next(branches, None):
            expected = f"{branch}, or {first['ctx']['expected']}"
    elif first["loc"] == ("body",) and first["type"] != "missing":
        expected = "a JSON object is expected, with the header 'Content-Type: application/json'"
    elif first["type"] == "json_invalid":
        expected = f"no JSON at character {first['loc'][-1]}: {first['ctx']['error']}"
    if first["type"] == "extra_forbidden":
        message = f"Unrecognized request argument supplied: {param}"
    else:
        message = f"Invalid {param or 'body'}: {expected}"
    code = "missing_required_parameter" if first["type"] == "missing" else None
    return _reply(request, invalid(message, param, code=code))


def _field(location: Sequence[int | str], body: Any) -> str | None:
    """The field of a Pydantic location: as far as the body has it, without the names of a union's branches."""
    place, *path = location
    if place != "body":
        return ".".join(map(str, path)) or None
    names: list[str] = []
    for step in path:
        in_list = isinstance(body, list) and isinstance(step, int) and step < len(body)
        if in_list or (isinstance(body, Mapping) and step in body):
            body = body[step]
        elif isinstance(body, Mapping) and step == path[-1]:  # a field that is missing
            body = None
        else:
            break
        names.append(str(step))
    return ".".join(names) or None


def internal_error(request_id: str) -> ApiError:
    """The error for a failure of the server's own, which its log has under that id."""
    message = f"The server had an error. Its log has more under the request {request_id}."
    return ApiError(500, message, code="internal_error")
