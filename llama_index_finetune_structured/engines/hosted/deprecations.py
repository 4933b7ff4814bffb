"""What is about to close, and what to switch to."""

from __future__ import annotations

import warnings
from datetime import date
from urllib.parse import urlsplit

__all__ = ["SunsetWarning", "closing", "warn_of_sunset"]

JOBS_CLOSE = date(2027, 1, 6)

# OpenAI's deprecations page, read 2026-11; fine-tunes of a model stop with it
_SHUTDOWN = {
    "gpt-4.1-nano": date(2026, 10, 23),
    "o4-mini": date(2026, 10, 23),
    "gpt-3.5-turbo": date(2026, 10, 23),
    "gpt-4.1": date(2027, 1, 14),
    "gpt-4o": date(2027, 1, 14),
}

_NEAR_DAYS = 120

_SWITCH = (
    "The same data trains LoraFinetuneEngine (your own machine), or this engine elsewhere "
    "with provider= or api_base=."
)


class SunsetWarning(UserWarning):
    """A model or service closes soon, or has closed."""


def closing(base_model: str, api_base: str, announced: object = None) -> date | None:
    """The day the model stops serving, if known: as the provider announced it, else OpenAI's own list."""
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
    """Warn (SunsetWarning) when training on this model buys only a short time; say what to use instead."""
    if _is_openai(api_base):
        verb = "stopped" if today >= JOBS_CLOSE else "stops"
        warnings.warn(
            f"OpenAI {verb} taking fine-tuning jobs on {JOBS_CLOSE}. {_SWITCH}", SunsetWarning, stacklevel=4
        )
    end = closing(base_model, api_base, announced)
    if end is not None and (end - today).days <= _NEAR_DAYS:
        verb = "was shut down" if today >= end else "shuts down"
        warnings.warn(
            f"{base_model} {verb} on {end}, and its fine-tuned models with it. {_SWITCH}",
            SunsetWarning,
            stacklevel=4,
        )


def _is_openai(api_base: str) -> bool:
    return urlsplit(api_base).hostname == "api.openai.com"
