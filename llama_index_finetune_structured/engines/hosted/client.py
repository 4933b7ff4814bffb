"""The SDK's client for one provider: retries of repeatable requests, and errors without the key."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import SecretStr
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt

from ...capture.known_secrets import mask_error, mask_secrets
from ...errors import EngineError, MissingDependencyError
from ...llms.keys import check_address
from ...printable import package_logger
from ..timeouts import Timeouts
from .providers import Provider

if TYPE_CHECKING:
    import openai
    from openai.types import Model

__all__ = [
    "SdkFailure",
    "Service",
    "connect",
    "model_description",
    "read_failure",
    "read_rows",
    "require_id",
    "sdk_errors",
]

logger = package_logger(__name__)

T = TypeVar("T")
FailureKind = Literal["permanent", "transient", "unknown"]

_ATTEMPTS = 6  # chosen: with pauses of 1, 2, 4, 8 and 16 s a short outage is waited out
_MOST_ROWS = 10_000  # chosen: OpenAI's longest page of files; a listing that never ends, ends here
_LONGEST_RETRY_AFTER_S = 120.0  # chosen: a longer Retry-After header is not followed

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
        "Fix the training file; validate_json=True names the lines beforehand.",
    ),
    (r"permission|forbidden", "Check the permissions of this key."),
)
"""Patterns in a permanent error's code and message, in order of precedence, with the hint for each."""

_NOT_READY = re.compile(r"still being processed|not ready|not yet (processed|ready)", re.I)
_QUOTA = re.compile(r"insufficient_quota|exceeded_quota|exceeded your current quota|billing", re.I)


@dataclass(frozen=True)
class SdkFailure:
    """A classified SDK error: whether the request may have taken effect, and whether a retry can help.

    ``kind`` is ``permanent`` (refused; a retry cannot help), ``transient`` (refused; a retry may succeed) or
    ``unknown`` (the request may or may not have taken effect). ``retry_after_s`` is the provider's own pause.
    """

    kind: FailureKind
    message: str
    hint: str = ""
    retry_after_s: float | None = None

    def error(self, doing: str) -> EngineError:
        """This failure as an EngineError; ``doing`` names the request."""
        return EngineError(f"{doing}: {self.message}" + (f"\n{self.hint}" if self.hint else ""))


def read_failure(error: Exception) -> SdkFailure:
    """Classify an error raised by the ``openai`` SDK, or by reading its reply."""
    import httpx
    import openai

    if isinstance(error, openai.APIStatusError):
        return _status_failure(error)
    text = f"{type(error).__name__}: {error}"
    cause = error.__cause__
    if isinstance(cause, (httpx.ConnectError, httpx.ConnectTimeout)):  # nothing was sent
        return SdkFailure("transient", f"{text} ({type(cause).__name__}: {cause})")
    if isinstance(error, openai.APIConnectionError) and cause is not None:
        text = f"{text} ({type(cause).__name__}: {cause})"
    return SdkFailure("unknown", text)


def _status_failure(error: Any) -> SdkFailure:
    status: int = error.status_code
    code, message = _code_and_message(error)
    text = f"HTTP {status}" + (f" {code}" if code else "") + f": {message}"
    if error.request_id:
        text += f" (request {error.request_id})"
    details = f"{code} {message}"
    if status == 429 and not _QUOTA.search(details):
        return SdkFailure("transient", text, retry_after_s=_retry_after_s(error))
    if status == 400 and _NOT_READY.search(details):
        return SdkFailure("transient", text)
    if status >= 500 or status in (408, 409):
        return SdkFailure("unknown", text, retry_after_s=_retry_after_s(error))
    hint = next((hint for pattern, hint in _HINTS if re.search(pattern, details, re.I)), "")
    return SdkFailure("permanent", text, hint)


def _code_and_message(error: Any) -> tuple[str, str]:
    """Code and message of an error body; providers deviate (``"error": {}``, a bare string, HTML)."""
    body = error.body
    if isinstance(body, dict) and isinstance(body.get("error"), dict):
        body = body["error"]
    if isinstance(body, dict):
        code = body.get("code") or body.get("type") or ""
        message = body.get("message") or body.get("detail") or ""
        return str(code), str(message) or "no message"
    return "", mask_secrets(str(body)).strip()[:500] if body else "no message"


def _retry_after_s(error: Any) -> float | None:
    try:
        # In this order the maximum of zero and NaN is zero.
        return min(max(0.0, float(error.response.headers["retry-after"])), _LONGEST_RETRY_AFTER_S)
    except (KeyError, ValueError):
        return None


@dataclass(frozen=True)
class Service:
    """A provider's profile, address, key and SDK client. The key is in no repr and no error.

    ``secrets``: other texts that no error may show.
    """

    provider: Provider
    api_base: str
    timeouts: Timeouts
    key: SecretStr
    client: openai.OpenAI = field(repr=False)
    secrets: tuple[SecretStr, ...] = ()

    def call(self, doing: str, request: Callable[[], T]) -> T:
        """Run a repeatable ``request``, with retries; ``doing`` names it in errors.

        Raises EngineError when it is refused, or not answered after all attempts.
        """
        try:
            return Retrying(
                sleep=self.timeouts.clock.sleep,
                stop=stop_after_attempt(_ATTEMPTS),
                wait=_pause_s,
                retry=retry_if_exception(_is_retryable),
                reraise=True,
            )(request)
        except sdk_errors() as error:
            raise self.explain(doing, error) from self.safe_cause(error)

    def __reduce__(self) -> str:
        raise TypeError("a connection holds a key and is not pickled; re-attach with the run folder")

    def failure(self, error: Exception) -> SdkFailure:
        """The classified error, with the key masked in its message."""
        failure = read_failure(error)
        return replace(failure, message=self.masked(failure.message))

    def masked(self, text: str) -> str:
        """The text with the key and the secrets masked: providers echo them in messages."""
        own = (secret.get_secret_value() for secret in (self.key, *self.secrets))
        return mask_secrets(text, *own)

    def explain(self, doing: str, error: Exception) -> EngineError:
        """The error as an EngineError with a hint, with the key masked."""
        return self.failure(error).error(doing)

    def safe_cause(self, error: Exception) -> Exception | None:
        """The SDK's error as a cause to chain, or None where a provider echoed the key or a secret in it."""
        shown = f"{error}{error.__cause__}{error.__context__}"
        mask_error(error)  # it stays the context of the error that is raised
        return error if self.masked(shown) == shown else None


def connect(
    provider: Provider,
    *,
    api_base: str | None,
    api_key: str | None,
    timeouts: Timeouts,
    secrets: tuple[SecretStr, ...] = (),
) -> Service:
    """Create the SDK's client, with its own retries off: they would repeat a submission.

    Raises ConfigurationError without a key or address, or where ``api_base`` is no address or contains credentials.
    """
    try:
        import openai
    except ImportError as error:
        raise MissingDependencyError("openai", "openai", "OpenAIFinetuneEngine") from error
    key = SecretStr(provider.api_key(api_key))
    base = provider.api_base(api_base)
    check_address(base, "api_base", "api_key")
    client = openai.OpenAI(
        api_key=key.get_secret_value(), base_url=base, max_retries=0, timeout=timeouts.request_s
    )
    return Service(provider, base, timeouts, key, client, secrets)


def sdk_errors() -> tuple[type[Exception], ...]:
    """The exceptions of a request that was refused, not answered, or answered with an unreadable reply."""
    import openai

    return (openai.OpenAIError, ValueError)  # ValueError: JSON that cannot be read, read_rows, require_id


def _is_retryable(error: BaseException) -> bool:
    return isinstance(error, sdk_errors()) and read_failure(error).kind != "permanent"


def _pause_s(state: RetryCallState) -> float:
    """The provider's Retry-After, else 1, 2, 4, ... seconds."""
    error = state.outcome.exception() if state.outcome else None
    retry_after_s = read_failure(error).retry_after_s if isinstance(error, Exception) else None
    return float(2 ** (state.attempt_number - 1)) if retry_after_s is None else retry_after_s


def require_id(reply: Any, what: str) -> Any:
    """The reply. Raises ValueError where it has no id: proxies answer 200 with an HTML page."""
    if not isinstance(getattr(reply, "id", None), str):
        raise ValueError(f"the reply is no {what}: {mask_secrets(str(reply))[:200]!r}")
    return reply


def read_rows(
    request: Callable[[], Any], what: str, *, most: int = _MOST_ROWS, with_ids: bool = True
) -> list[Any]:
    """The rows of the listing that ``request`` returns, of all pages or the first ``most``.

    Raises ValueError where a page is no list, or a row has no id (``with_ids``), so that an unreadable listing is not
    taken for an empty one. A page that ends as an earlier one did ends the listing: some servers ignore ``after`` and
    would be asked for ever.
    """
    rows: list[Any] = []
    ends: set[str] = set()
    try:
        for page in request().iter_pages():
            if not _are_rows(page.data, with_ids):
                raise ValueError(f"the reply is no list of {what}: {mask_secrets(str(page))[:200]!r}")
            end = str(getattr(page.data[-1], "id", None)) if page.data else ""
            if end in ends:
                break
            ends.add(end)
            rows += page.data
            if len(rows) >= most:
                break
    except AttributeError as error:  # an HTML page, which the SDK returns as text
        raise ValueError(f"the reply is no list of {what}") from error
    return rows[:most]


def _are_rows(data: object, with_ids: bool) -> bool:
    return isinstance(data, list) and (
        not with_ids or all(isinstance(getattr(row, "id", None), str) for row in data)
    )


def model_description(service: Service, model: str) -> Model | None:
    """The provider's description of a model, or None: many providers have none."""
    try:
        return service.client.models.retrieve(model)
    except sdk_errors() as error:
        logger.debug("no description of %s: %s", model, type(error).__name__)
        return None
