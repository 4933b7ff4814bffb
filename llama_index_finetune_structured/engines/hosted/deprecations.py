"""Warn of models and services that close soon, with the alternatives."""

from __future__ import annotations

import warnings
from datetime import date
from urllib.parse import urlsplit

from ...printable import one_line

__all__ = ["SunsetWarning", "closing", "warn_of_sunset"]

# Both from OpenAI's deprecations page, read 2026-11. Fine-tunes of a model shut down together with it.
JOBS_CLOSE = date(2027, 1, 6)
_SHUTDOWN = {
    "gpt-4.1-nano": date(2026, 10, 23),
    "o4-mini": date(2026, 10, 23),
    "gpt-3.5-turbo": date(2026, 10, 23),
    "gpt-4.1": date(2027, 1, 14),
    "gpt-4o": date(2027, 1, 14),
}

_NEAR_DAYS = 120  # chosen: about four months of use before the shutdown

_SWITCH = (
    "The same data trains LoraFinetuneEngine (on your own machine), or this engine elsewhere "
    "with provider= or api_base=."
)


class SunsetWarning(UserWarning):
    """A model or service closes soon, or has closed."""


def closing(base_model: str, api_base: str, announced: object = None) -> date | None:
    """The shutdown date of the model, if known: ``announced`` by the provider, else from OpenAI's list.

    ``announced`` is an ISO date; None too where that cannot be parsed, or the address is not OpenAI's.
    """
    if isinstance(announced, str):
        try:
            return date.fromisoformat(announced[:10])
        except ValueError:
            return None
    if not _is_openai(api_base):
        return None
    matches = [prefix for prefix in _SHUTDOWN if base_model.removeprefix("ft:").startswith(prefix)]
    return _SHUTDOWN[max(matches, key=len)] if matches else None


def warn_of_sunset(base_model: str, api_base: str, today: date, announced: object = None) -> None:
    """Issue a SunsetWarning where the service, or a model tuned on this one, closes within 120 days."""
    if _is_openai(api_base):
        verb = "stopped" if today >= JOBS_CLOSE else "stops"
        warnings.warn(
            f"OpenAI {verb} taking fine-tuning jobs on {JOBS_CLOSE}. {_SWITCH}", SunsetWarning, stacklevel=4
        )
    end = closing(base_model, api_base, announced)
    # stacklevel 4: the caller of finetune(), through _warn_of_sunset.
    if end is not None and (end - today).days <= _NEAR_DAYS:
        verb = "was shut down" if today >= end else "shuts down"
        warnings.warn(
            f"{one_line(base_model)} {verb} on {end}, and its fine-tuned models with it. {_SWITCH}",
            SunsetWarning,
            stacklevel=4,
        )


def _is_openai(api_base: str) -> bool:
    return urlsplit(api_base).hostname == "api.openai.com"
