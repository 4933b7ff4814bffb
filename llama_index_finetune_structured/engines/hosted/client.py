"""One provider as this process talks to it: the SDK's client, and calls retried where that is safe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from pydantic import SecretStr
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt

from ...errors import ConfigurationError, EngineError, MissingDependencyError
from ..timeouts import Timeouts
from .failures import Failure, read_failure
from .providers import Provider

if TYPE_CHECKING:
    import openai

__all__ = ["Service", "connect", "reply_errors", "with_id", "with_rows"]

T = TypeVar("T")

_ATTEMPTS = 6


@dataclass(frozen=True)
class Service:
    """The provider's profile, its address, the key and the client; none of them shows the key."""

    provider: Provider
    api_base: str
    timeouts: Timeouts
    key: SecretStr
    client: openai.OpenAI = field(repr=False)

    def call(self, doing: str, request: Callable[[], T]) -> T:
        """Run a request that may safely run twice; raises EngineError when refused or never answered."""
        try:
            return Retrying(
                sleep=self.timeouts.clock.sleep,
                stop=stop_after_attempt(_ATTEMPTS),
                wait=_pause_s,
                retry=retry_if_exception(_worth_repeating),
                reraise=True,
            )(request)
        except reply_errors() as error:
            raise self.explain(doing, error) from self.safe_cause(error)

    def __reduce__(self) -> str:
        raise TypeError("a connection holds a key and is not pickled; re-attach with the run folder")

    def failure(self, error: Exception) -> Failure:
        """What the error means, without the key."""
        failure = read_failure(error)
        return replace(failure, message=failure.message.replace(self.key.get_secret_value(), "***"))

    def explain(self, doing: str, error: Exception) -> EngineError:
        """The error as an EngineError that says what to do, without the key."""
        return self.failure(error).error(doing)

    def safe_cause(self, error: Exception) -> Exception | None:
        """The SDK's error, or None where a provider echoed the key in it."""
        shown = f"{error}{error.__cause__}{error.__context__}"
        return None if self.key.get_secret_value() in shown else error


def connect(provider: Provider, *, api_base: str | None, api_key: str | None, timeouts: Timeouts) -> Service:
    """Open the SDK's client. It retries nothing itself: this package decides what may run twice."""
    try:
        import openai
    except ImportError as error:
        raise MissingDependencyError("openai", "openai", "OpenAIFinetuneEngine") from error
    key = SecretStr(provider.api_key(api_key))
    base = provider.api_base(api_base)
    if "@" in urlsplit(base).netloc or urlsplit(base).query:
        raise ConfigurationError("api_base holds credentials or a query; give the key as api_key instead")
    client = openai.OpenAI(
        api_key=key.get_secret_value(), base_url=base, max_retries=0, timeout=timeouts.request_s
    )
    return Service(provider, base, timeouts, key, client)


def reply_errors() -> tuple[type[Exception], ...]:
    """What the SDK raises when a request is refused, gets no answer, or an answer that cannot be read."""
    import openai

    return (openai.OpenAIError, ValueError)  # ValueError: a reply that is not what it says it is


def _worth_repeating(error: BaseException) -> bool:
    return isinstance(error, reply_errors()) and read_failure(error).kind != "permanent"


def _pause_s(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    asked_s = read_failure(error).retry_after_s if isinstance(error, Exception) else None
    return float(2 ** (state.attempt_number - 1)) if asked_s is None else asked_s


def with_id(reply: Any, what: str) -> Any:
    """The reply, if it is what was asked for; proxies answer 200 with a page of HTML."""
    if not isinstance(getattr(reply, "id", None), str):
        raise ValueError(f"the reply is no {what}: {str(reply)[:200]!r}")
    return reply


def with_rows(request: Callable[[], Any], what: str) -> Any:
    """The listing, if the reply is one: an unreadable list must not pass for an empty one."""
    try:
        reply = request()
    except AttributeError as error:  # how the SDK trips over a page of HTML
        raise ValueError(f"the reply is no list of {what}") from error
    if not isinstance(getattr(reply, "data", None), list):
        raise ValueError(f"the reply is no list of {what}: {str(reply)[:200]!r}")
    return reply
