"""Around every request: its id, the limit of its body, the log without content, and errors of the server's own."""

from __future__ import annotations

import re
import secrets
import time

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import ApiError, error_body, internal_error
from .json_log import log_entry, log_failure
from .metrics import ServiceMetrics
from .settings import ServiceSettings

__all__ = ["RequestGuard"]

_FORM_BYTES = 1 << 20  # chosen: of a form around its file
_CLOSED = 499  # what nginx logs where the client has gone
_FILES, _PARTS = re.compile(r"/v1/files/?"), re.compile(r"/v1/uploads/[^/]+/parts/?")


class RequestGuard:
    """ASGI middleware. Content of requests and replies is in no log, and so are no texts of unknown exceptions."""

    def __init__(self, app: ASGIApp, settings: ServiceSettings, metrics: ServiceMetrics) -> None:
        self._app, self._settings, self._metrics = app, settings, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = f"req_{secrets.token_hex(12)}"
        scope.setdefault("state", {})["request_id"] = request_id
        status, started = 0, time.perf_counter()

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                headers["x-content-type-options"] = "nosniff"
            await send(message)

        try:
            limited = self._limited(scope, receive)
            await self._app(scope, limited, sending)
        except ApiError as error:
            await JSONResponse(error_body(error, scope["path"]), error.status_code)(scope, receive, sending)
        except ClientDisconnect:
            status = _CLOSED
        except Exception as error:
            log_failure(error, request_id)
            if status == 0:
                failure = internal_error(request_id)
                await JSONResponse(error_body(failure, scope["path"]), failure.status_code)(
                    scope, receive, sending
                )
        finally:
            self._finish(scope, request_id, status, time.perf_counter() - started)

    def _limited(self, scope: Scope, receive: Receive) -> Receive:
        """``receive`` with an end. Raises ApiError, here or at the piece that is too much."""
        limit = self._limit(scope)
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if not declared.isdigit() or int(declared) > limit:
            raise _too_large(limit)
        received = 0

        async def receiving() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise _too_large(limit)
            return message

        return receiving

    def _limit(self, scope: Scope) -> int:
        if scope["method"] == "POST" and _FILES.fullmatch(scope["path"]):
            return self._settings.max_file_bytes + _FORM_BYTES
        if scope["method"] == "POST" and _PARTS.fullmatch(scope["path"]):
            return self._settings.max_part_bytes + _FORM_BYTES
        return self._settings.max_body_bytes

    def _finish(self, scope: Scope, request_id: str, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "other")
        method = scope["method"] if scope["method"] in _METHODS else "other"
        self._metrics.count(method, route, status, seconds)
        log_entry(
            "request",
            request_id=request_id,
            key=scope["state"].get("key"),
            method=method,
            route=route,
            status=status,
            seconds=round(seconds, 4),
        )


_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"The request has more than {limit:,} bytes.", code="request_too_large")
