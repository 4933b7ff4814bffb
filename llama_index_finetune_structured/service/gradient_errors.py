"""Errors in the shape of Gradient's protocol: ``{"type", "message"}``."""

from __future__ import annotations

from ..printable import printable

__all__ = ["API_PREFIX", "gradient_error_body"]

API_PREFIX = "/api"
"""Where the routes of the protocol are; the path of the SDK's default host ends in it."""
_KINDS = {
    "bodyParsingError",
    "failed",
    "modelIncapableOfFineTuning",
    "nanLoss",
    "unknownBaseModel",
    "unknownModelAdapter",
    "unknownRagCollection",
    "unprocessableContent",
}
# Types of errors that come from parts that both protocols share.
_BY_STATUS = {
    400: "bodyParsingError",
    401: "unauthorized",
    403: "forbidden",
    404: "notFound",
    413: "bodyParsingError",
    422: "unprocessableContent",
}


def gradient_error_body(status: int, kind: str, message: str) -> dict[str, str]:
    """The reply's body. ``kind``: the error's type, of either protocol."""
    known = kind if kind in _KINDS else _BY_STATUS.get(status, "failed")
    return {"type": known, "message": printable(message) or "failed"}
