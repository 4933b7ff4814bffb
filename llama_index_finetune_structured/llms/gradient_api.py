"""Client of Gradient's protocol, over the SDK's generated client: its public classes accept no request timeout.

Gradient's hosted service is retired; ``host=`` names a server of your own that implements the protocol.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlsplit

from pydantic import SecretStr

from ..capture.known_secrets import mask_secrets
from ..errors import ConfigurationError, MissingDependencyError, ServiceError
from .keys import ApiKey, check_address, secret_key

__all__ = ["GradientApi", "NotDoneError", "connect_gradient", "resolve_host"]

T = TypeVar("T")

_RETIRED = "api.gradient.ai"


class NotDoneError(ServiceError):
    """A request certainly did nothing, and a retry may succeed: no connection, or refused for the moment."""


def resolve_host(host: str | None) -> str:
    """The server's address from the argument or $GRADIENT_API_URL.

    Raises ConfigurationError for the retired one, for what is no address, and for one with credentials in it.
    """
    address = host or os.environ.get("GRADIENT_API_URL") or f"https://{_RETIRED}/api"
    check_address(address, "host", "access_token")
    if urlsplit(address).hostname == _RETIRED:
        raise ConfigurationError(
            f"{address}: Gradient's hosted service is retired. Train the same data with "
            "LoraFinetuneEngine on your own machine, or set a server of Gradient's protocol with "
            "host= or GRADIENT_API_URL"
        )
    return address


def _from_environment(argument: str | None, variable: str, name: str) -> str:
    value = argument or os.environ.get(variable)
    if not value:
        raise ConfigurationError(f"no {name}: pass {name}= or set {variable}")
    return value


@dataclass(frozen=True)
class GradientApi:
    """One workspace at one host. Each method sends one request and raises ServiceError, never with the token.

    ``request_s``: timeout of a request, in seconds. ``client``: the SDK's generated ModelsApi.
    """

    host: str
    workspace_id: str
    token: SecretStr
    request_s: float
    client: Any = field(repr=False)

    def __reduce__(self) -> str:
        raise TypeError("a connection holds a token and is not pickled")

    def base_model_id(self, slug: str) -> str:
        """The id of a base model. Raises ConfigurationError, with the known slugs, for an unknown one."""
        models = self._models(only_base=True)
        for model in models:
            if model.slug == slug:
                return str(model.id)
        known = ", ".join(sorted(model.slug for model in models)) or "none"
        raise ConfigurationError(f"no base model {slug!r} at {self.host}; there are: {known}")

    def adapters(self) -> list[Any]:
        """Every adapter of the workspace: id, name, base_model_id, latest_update_time."""
        return [model for model in self._models(only_base=False) if model.type == "modelAdapter"]

    def _models(self, *, only_base: bool) -> list[Any]:
        reply = self._call(
            "listing models",
            lambda: self.client.list_models(
                self.workspace_id, capability="any", only_base=only_base, _request_timeout=self.request_s
            ),
        )
        return [model.actual_instance for model in reply.models]

    def adapter(self, adapter_id: str) -> Any:
        """One adapter's description."""
        return self._call(
            f"looking up adapter {adapter_id}",
            lambda: self.client.get_model(adapter_id, self.workspace_id, _request_timeout=self.request_s),
        )

    def create_adapter(self, base_model_id: str, name: str) -> str:
        """The id of a new adapter."""
        body = {"model": {"baseModelId": base_model_id, "name": name}}
        reply = self._call(
            f"creating adapter {name!r}",
            lambda: self.client.create_model(
                self.workspace_id,
                _sdk().CreateModelBodyParams.from_dict(body),
                _request_timeout=self.request_s,
            ),
        )
        return str(reply.id)

    def fine_tune(self, adapter_id: str, samples: Sequence[Mapping[str, Any]]) -> Any:
        """Train one pass over the samples; returns sum_loss and number_of_trainable_tokens."""
        return self._call(
            "fine-tuning",
            lambda: self.client.fine_tune_model(
                adapter_id,
                self.workspace_id,
                _sdk().FineTuneModelBodyParams.from_dict({"samples": [dict(sample) for sample in samples]}),
                _request_timeout=self.request_s,
            ),
        )

    def complete(self, model_id: str, query: str, **parameters: Any) -> Any:
        """One completion; returns generated_output and finish_reason."""
        # Else the client's model would ask for the base's template, which the text that was trained on has not.
        parameters = {"auto_template": None, **parameters}
        return self._call(
            "completing",
            lambda: self.client.complete_model(
                model_id,
                self.workspace_id,
                _sdk().CompleteModelBodyParams(query=query, **parameters),
                _request_timeout=self.request_s,
            ),
        )

    def _call(self, doing: str, request: Callable[[], T]) -> T:
        from gradientai.openapi.client.exceptions import ApiException
        from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError

        try:
            reply = request()
            if reply is None:  # the SDK's reading of an empty reply and of null
                raise ValueError("the reply is empty")
            return reply
        except ApiException as error:
            cls = NotDoneError if error.status == 429 else ServiceError
            failure = self._error(doing, *_of_reply(error), cls)
        except HTTPError as error:
            is_unsent = isinstance(getattr(error, "reason", error), (NewConnectionError, ConnectTimeoutError))
            cls = NotDoneError if is_unsent else ServiceError
            failure = self._error(doing, f"{type(error).__name__}: {error}", False, cls)
        except (ValueError, AttributeError, TypeError) as error:
            text = f"not a request or reply of Gradient's protocol: {error}"
            failure = self._error(doing, text, refused=False)
        # Raised here, as the SDK's error, which has the reply's headers in it, would become its context.
        raise failure

    def _error(
        self, doing: str, text: str, refused: bool, cls: type[ServiceError] = ServiceError
    ) -> ServiceError:
        message = mask_secrets(f"{doing} at {self.host}: {text}", self.token.get_secret_value())
        return cls(message, refused=refused)


_HINTS = {
    "nanLoss": "The loss is not a number: fix or remove these samples.",
    "modelIncapableOfFineTuning": "Choose a base model with the capability fineTune.",
}


def _of_reply(error: Any) -> tuple[str, bool]:
    """Message and "refused" of an error reply; refused means that a retry would not help."""
    try:
        body = json.loads(error.body)
    except (TypeError, ValueError):
        body = {}
    body = body if isinstance(body, dict) else {}
    error_type = str(body.get("type") or "")
    words = [
        f"HTTP {error.status}",
        error_type,
        str(body.get("message") or error.reason or ""),
        _HINTS.get(error_type, ""),
    ]
    status = int(error.status or 0)
    return " ".join(filter(None, words)), 400 <= status < 500 and status not in (408, 429)


def connect_gradient(
    host: str | None, access_token: ApiKey, workspace_id: str | None, request_s: float = 600
) -> GradientApi:
    """Open a workspace. ``request_s``: timeout of a request, in seconds.

    Host, token and workspace default to $GRADIENT_API_URL, $GRADIENT_ACCESS_TOKEN and $GRADIENT_WORKSPACE_ID.
    Raises ConfigurationError where one is missing.
    """
    address = resolve_host(host)
    token_argument = secret_key(access_token).get_secret_value()
    token = secret_key(_from_environment(token_argument, "GRADIENT_ACCESS_TOKEN", "access_token"))
    workspace = _from_environment(workspace_id, "GRADIENT_WORKSPACE_ID", "workspace_id")
    sdk = _sdk()
    settings = sdk.Configuration(access_token=token.get_secret_value(), host=address)
    settings.retries = False  # retries are decided by this package, which knows what may be sent twice
    client = sdk.ModelsApi(sdk.ApiClient(settings))
    return GradientApi(address, workspace, token, request_s, client)


def _sdk() -> Any:
    try:
        import gradientai.openapi.client
    except ImportError as error:
        raise MissingDependencyError("gradientai", "gradient", "Gradient's protocol") from error
    return gradientai.openapi.client
