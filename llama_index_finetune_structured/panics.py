"""Panics of Rust libraries, which reach Python as exceptions that are no ``Exception``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["is_panic", "recursion_ends"]


def is_panic(error: BaseException) -> bool:
    """Whether it is a Rust panic, of tokenizers or of jsonschema's maps; its class can be imported from nowhere."""
    return type(error).__name__ == "PanicException"


@contextmanager
def recursion_ends() -> Iterator[None]:
    """Raise RecursionError where jsonschema's recursion ends inside of a Rust library, which panics then."""
    try:
        yield
    except BaseException as error:
        if is_panic(error):
            raise RecursionError("maximum recursion depth exceeded") from None
        raise
