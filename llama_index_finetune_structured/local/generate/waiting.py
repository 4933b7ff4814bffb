"""Waiting requests: in order of arrival, but a call of many requests does not keep the others waiting for all."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from .request import GenerationRequest

__all__ = ["WaitingRequests"]


class WaitingRequests:
    """A queue of requests in turns: of one call, at most ``turn`` requests are taken before another's are.

    A call of no more requests than that keeps its place, so that they are generated together: they share a prompt,
    and calls that end one after the other wait less than calls that all end last. Not thread-safe.
    """

    def __init__(self, turn: int) -> None:
        self._turn = turn
        self._calls: dict[object, deque[GenerationRequest]] = {}
        self._taken = 0  # of the first call, in its turn

    def __bool__(self) -> bool:
        return bool(self._calls)

    def __iter__(self) -> Iterator[GenerationRequest]:
        return (request for requests in self._calls.values() for request in requests)

    def append(self, request: GenerationRequest) -> None:
        """Add a request behind those of its call, a call's first one behind all."""
        call = id(request) if request.call is None else request.call
        self._calls.setdefault(call, deque()).append(request)

    def popleft(self) -> GenerationRequest:
        """Remove and return the next request. Raises StopIteration where none waits."""
        return self._popped(next(iter(self._calls)), in_turn=True)

    def pop(
        self, takes: Callable[[GenerationRequest], bool], *, past: bool = False
    ) -> GenerationRequest | None:
        """Remove and return the next request; None where none waits that ``takes`` is true of.

        ``past``: whether it may pass those before it; else it is the first one or none.
        """
        for number, (call, requests) in enumerate(self._calls.items()):
            if takes(requests[0]):
                return self._popped(call, in_turn=not number)
            if not past:
                break
        return None

    def _popped(self, call: object, *, in_turn: bool) -> GenerationRequest:
        requests = self._calls[call]
        request = requests.popleft()
        if not in_turn:
            if not requests:
                del self._calls[call]
            return request
        self._taken += 1
        if not requests or self._taken >= self._turn:
            self._taken = 0
            del self._calls[call]
            if requests:
                self._calls[call] = requests
        return request
