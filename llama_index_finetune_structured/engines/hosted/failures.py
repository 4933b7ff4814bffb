"""What an SDK error means: may it have taken effect, does trying again help, what should the user do."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

from ...errors import EngineError

__all__ = ["Failure", "read_failure"]

Kind = Literal["permanent", "transient", "unknown"]


@dataclass(frozen=True)
class Failure:
    """``permanent``: trying again cannot help. ``transient``: refused, later it may be taken.
    ``unknown``: it may or may not have taken effect."""

    kind: Kind
    message: str
    hint: str = ""
    retry_after_s: float | None = None

    def error(self, doing: str) -> EngineError:
        """This failure as an EngineError."""
        return EngineError(f"{doing}: {self.message}" + (f"\n{self.hint}" if self.hint else ""))


_HINTS = (
    (r"insufficient_quota|exceeded_quota|billing|quota", "Add credit or raise the limit in the account."),
    (
        r"no longer (available|supported|accept)|not (allowed|eligible|permitted) to (create|fine)"
        r"|fine.?tuning.{0,40}(closed|disabled|unavailable|not available|deprecated)",
        "The provider takes no fine-tuning jobs from this organisation. The same data trains "
        "LoraFinetuneEngine, or this engine elsewhere with provider= or api_base=.",
    ),
    (r"invalid_api_key|authentication|api key", "Check the key: it must belong to this api_base."),
    (r"model_not_(found|available)|does not exist.*model|model.*does not exist", "Check base_model."),
    (
        r"invalid_(training_)?file|invalid.?file|file format|training file",
        "Mend the training file; validate_json=True names the lines beforehand.",
    ),
    (r"permission|forbidden", "Check what this key may do."),
)

_NOT_READY = re.compile(r"still being processed|not ready|not yet (processed|ready)", re.I)
_QUOTA = re.compile(r"insufficient_quota|exceeded_quota|exceeded your current quota|billing", re.I)


def read_failure(error: Exception) -> Failure:
    """Classify an error raised by the ``openai`` SDK, or by reading its reply."""
    import openai

    if isinstance(error, openai.APIStatusError):
        return _of_status(error)
    text = f"{type(error).__name__}: {error}"
    cause = error.__cause__
    if isinstance(error, openai.APIConnectionError) and cause is not None:
        text = f"{text} ({type(cause).__name__}: {cause})"
    return Failure("unknown", text)


def _of_status(error: Any) -> Failure:
    status: int = error.status_code
    code, message = _code_and_message(error)
    text = f"HTTP {status}" + (f" {code}" if code else "") + f": {message}"
    if error.request_id:
        text += f" (request {error.request_id})"
    said = f"{code} {message}"
    if status == 429 and not _QUOTA.search(said):
        return Failure("transient", text, retry_after_s=_retry_after_s(error))
    if status == 400 and _NOT_READY.search(said):
        return Failure("transient", text)
    if status >= 500 or status in (408, 409):
        return Failure("unknown", text, retry_after_s=_retry_after_s(error))
    hint = next((hint for pattern, hint in _HINTS if re.search(pattern, said, re.I)), "")
    return Failure("permanent", text, hint)


def _code_and_message(error: Any) -> tuple[str, str]:
    """Providers' bodies deviate (``"error": {}``, a bare string, HTML), so each part is looked for."""
    body = error.body
    if isinstance(body, dict) and isinstance(body.get("error"), dict):
        body = body["error"]
    if isinstance(body, dict):
        code = body.get("code") or body.get("type") or ""
        message = body.get("message") or body.get("detail") or ""
        return str(code), str(message) or "no message"
    return "", str(body).strip()[:500] if body else "no message"


def _retry_after_s(error: Any) -> float | None:
    try:
        return min(max(float(error.response.headers["retry-after"]), 0.0), 120.0)
    except (KeyError, ValueError):
        return None
