"""Profiles of the providers with OpenAI's fine-tuning protocol: addresses, keys and deviations.

A provider is a dataclass with one function for its request body, never a subclass. A new profile also needs a row in
docs/providers.md and one for its variables in docs/environment.md.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import ConfigurationError
from ...llms.keys import checked_key

__all__ = ["DEAD", "PROVIDERS", "JobRequest", "Provider", "normal_status", "provider_named"]


@dataclass(frozen=True)
class JobRequest:
    """A job request in neutral form; ``Provider.body`` turns it into a provider's own."""

    base_model: str
    training_file: str
    validation_file: str | None
    hyperparameters: Mapping[str, Any]
    suffix: str | None
    seed: int | None
    metadata: Mapping[str, str]
    extra_body: Mapping[str, Any]


@dataclass(frozen=True)
class Provider:
    """The profile of one provider.

    - ``key_variables``, ``base_variables``: environment variables of key and address; the first one set counts.
    - ``body``: the keyword arguments for the SDK's ``jobs.create``.
    - ``byte_order_mark``: files must begin with one.
    - ``serves_by_deployment``: a tuned model is called by the name of a deployment that the user makes.
    """

    name: str
    key_variables: tuple[str, ...]
    base_variables: tuple[str, ...]
    default_base: str | None
    body: Callable[[JobRequest], dict[str, Any]]
    byte_order_mark: bool = False
    max_file_bytes: int = 512 * 1024**2
    serves_by_deployment: bool = False

    def api_base(self, given: str | None) -> str:
        """The base URL: ``given``, else from the environment, else the provider's own.

        Raises ConfigurationError where there is none.
        """
        base = given or _first_set(self.base_variables) or self.default_base
        if not base:
            raise ConfigurationError(
                f"provider {self.name!r} has no default address: "
                f"pass api_base= or set {self.base_variables[0]}"
            )
        return base

    def api_key(self, given: str | None) -> str:
        """The key: ``given``, else from the environment. Raises ConfigurationError where none can be sent."""
        key = given or _first_set(self.key_variables)
        if not key:
            raise ConfigurationError(
                f"no API key for provider {self.name!r}: pass api_key= or set {self.key_variables[0]}"
            )
        return checked_key(key)


def _first_set(variables: tuple[str, ...]) -> str | None:
    return next((os.environ[name] for name in variables if os.environ.get(name)), None)


def _common(request: JobRequest) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": request.base_model,
        "training_file": request.training_file,
        "validation_file": request.validation_file,
        "suffix": request.suffix,
        "seed": request.seed,
        "metadata": dict(request.metadata),
        "extra_body": dict(request.extra_body),
    }
    return {name: value for name, value in body.items() if value not in (None, {})}


def _with_method(request: JobRequest) -> dict[str, Any]:
    body = _common(request)
    if request.hyperparameters:
        supervised = {"hyperparameters": dict(request.hyperparameters)}
        body["method"] = {"type": "supervised", "supervised": supervised}
    return body


def _for_azure(request: JobRequest) -> dict[str, Any]:
    if request.suffix and not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", request.suffix):
        raise ConfigurationError(
            f"suffix {request.suffix!r}: azure accepts 1-40 letters, digits, '-' and '_', and no dots"
        )
    return _with_method(request)


def _for_nebius(request: JobRequest) -> dict[str, Any]:
    body = _common(request)
    if request.hyperparameters:
        # The SDK's types lack lora, lora_r, packing, ..., so they are sent in extra_body.
        body["extra_body"] = dict(request.extra_body) | {"hyperparameters": dict(request.hyperparameters)}
    return body


PROVIDERS: dict[str, Provider] = {
    "openai": Provider(
        name="openai",
        key_variables=("OPENAI_API_KEY",),
        base_variables=("OPENAI_BASE_URL", "OPENAI_API_BASE"),
        default_base="https://api.openai.com/v1",
        body=_with_method,
    ),
    "azure": Provider(
        name="azure",
        key_variables=("AZURE_OPENAI_API_KEY",),
        base_variables=("AZURE_OPENAI_BASE_URL",),
        default_base=None,
        body=_for_azure,
        byte_order_mark=True,
        serves_by_deployment=True,
    ),
    "nebius": Provider(
        name="nebius",
        key_variables=("NEBIUS_API_KEY",),
        base_variables=("NEBIUS_BASE_URL",),
        default_base="https://api.tokenfactory.nebius.com/v1/",
        body=_for_nebius,
        max_file_bytes=5 * 1024**3,
    ),
}


def provider_named(name: str) -> Provider:
    """The profile called ``name``. Raises ConfigurationError, with the known names, for any other."""
    if name not in PROVIDERS:
        raise ConfigurationError(f"unknown provider {name!r}; known: {', '.join(sorted(PROVIDERS))}")
    return PROVIDERS[name]


# Final statuses in the spellings of OpenAI and of servers that imitate it
_STATUSES = {
    "succeeded": "succeeded",
    "completed": "succeeded",
    "failed": "failed",
    "error": "failed",
    "cancelled": "cancelled",
    "canceled": "cancelled",
}

DEAD = ("failed", "cancelled")
"""The final statuses after which a job is resubmitted."""


def normal_status(status: object) -> str:
    """``succeeded``, ``failed`` or ``cancelled`` for final statuses, else ``running``."""
    return _STATUSES.get(str(status).strip().lower(), "running")
