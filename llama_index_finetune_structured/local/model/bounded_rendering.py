"""Render chat templates within limits of time and output: one from a hub may loop for ever or print without end."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ...errors import ConfigurationError

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["bounded_rendering"]

# Chosen. The templates of real models take a millisecond, and print a few hundred characters besides the messages.
_SECONDS = 5.0
_CHARACTERS, _CHARACTERS_EACH = 1_000_000, 20
_TEMPLATE = "<template>"  # the file name that jinja gives to templates made from text


@contextmanager
def bounded_rendering(characters: int) -> Iterator[None]:
    """Raise ConfigurationError where a jinja template of the block runs for seconds or prints without end.

    ``characters``: of the messages. The limits hold between two steps of a template; what one step computes, such as
    a text times a large number, is not limited.
    """
    watch = _Watch(time.monotonic() + _SECONDS, _CHARACTERS + _CHARACTERS_EACH * characters)
    before = sys.gettrace()
    sys.settrace(watch.enter)
    try:
        yield
    finally:
        sys.settrace(before)


class _Watch:
    """A trace function of the interpreter, which is called at each line of a template's code and at each output."""

    def __init__(self, deadline: float, characters: int) -> None:
        self._deadline, self._characters = deadline, characters

    def enter(self, frame: FrameType, _event: str, _value: Any) -> Any:
        return self._step if frame.f_code.co_filename == _TEMPLATE else None

    def _step(self, _frame: FrameType, event: str, value: Any) -> Any:
        if event == "return" and isinstance(value, str):  # a text that it yields
            self._characters -= len(value)
        if self._characters < 0:
            raise ConfigurationError(
                "the base model's chat template prints over a million characters more than the messages have: use "
                "another base model, or correct the template"
            )
        if time.monotonic() > self._deadline:
            raise ConfigurationError(
                f"the base model's chat template runs for more than {_SECONDS:g} seconds: use another base model, or "
                "correct the template"
            )
        return self._step
