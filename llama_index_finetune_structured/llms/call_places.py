"""Places of calls: how many may wait or be answered at a time, and until when each must end."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import AsyncGenerator, Generator, Iterator
from contextlib import aclosing, contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from typing_extensions import Self

from ..errors import QueueFullError
from ..forks import reset_after_fork

__all__ = ["CallPlaces", "Place"]

T = TypeVar("T")


class Place:
    """The place of one call, for ``with``: it is free again at the end of the block, or when it is collected.

    ``deadline``: by ``time.monotonic()``; None: there is none.
    """

    def __init__(
        self, places: CallPlaces | None = None, number: int = 0, deadline: float | None = None
    ) -> None:
        self._places, self._number, self.deadline = places, number, deadline

    def release(self) -> None:
        """Free the place; the second time nothing happens. Takes no lock: the garbage collector calls it too."""
        if self._places is not None:
            self._places.taken.pop(self._number, None)
            self._places = None

    def is_of(self, places: CallPlaces) -> bool:
        """Whether this is a place among these, and not yet free."""
        return self._places is places

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Let calls that begin in this block use this place, which they do not free: attempts of one call."""
        token = _shared.set(self)
        try:
            yield
        finally:
            _shared.reset(token)

    @contextmanager
    def unless_failed(self) -> Iterator[None]:
        """Free the place where the block raises; else a stream keeps it."""
        try:
            yield
        except BaseException:
            self.release()
            raise

    def during(self, chunks: Iterator[T]) -> Generator[T, None, None]:
        """The chunks; the place is free at their end."""
        with self:
            yield from chunks

    async def aduring(self, chunks: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
        """The chunks; the place is free at their end."""
        with self:
            async with aclosing(chunks):
                async for chunk in chunks:
                    yield chunk

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    __del__ = release


_shared: ContextVar[Place | None] = ContextVar("finetune_structured_place", default=None)


class CallPlaces:
    """The places of the calls of one LLM object, and of its copies in this process."""

    def __init__(self) -> None:
        self.after_fork()
        reset_after_fork(self)

    def after_fork(self) -> None:
        """Begin without calls: those of the parent end there."""
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self.taken: dict[int, float | None] = {}  # number -> deadline

    def take(self, most: int | None, timeout_s: float | None) -> Place:
        """A place for a call that begins now.

        ``most``: places in all; None: any number. ``timeout_s``: seconds that the call may take; None: any time. Places
        whose time is over count as free. Raises QueueFullError at once where none is free.
        """
        outer = _shared.get()
        if outer is not None and outer.is_of(self):
            return Place(deadline=outer.deadline)
        now = time.monotonic()
        deadline = None if timeout_s is None else now + timeout_s
        with self._lock:
            if most is not None and len(self.taken) >= most:
                self._forget_late(now)
                if len(self.taken) >= most:
                    raise QueueFullError(
                        f"{len(self.taken)} calls wait or are being answered, as many as max_queue allows: ask again "
                        "later, or raise max_queue"
                    )
            number = next(self._numbers)
            self.taken[number] = deadline
        return Place(self, number, deadline)

    def _forget_late(self, now: float) -> None:
        late = [n for n, deadline in list(self.taken.items()) if deadline is not None and deadline <= now]
        for number in late:
            self.taken.pop(number, None)

    def __deepcopy__(self, _memo: Any) -> CallPlaces:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()
