"""A provider that behaves oddly, called in-process: lost replies, late and short listings, dropped metadata, kills."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx

from tests.fakes.clock import FakeClock
from tests.fakes.loopback import Reply, Request
from tests.fakes.openai_server import OpenAIServer

METADATA = ("kept", "dropped", "rewritten")
LISTINGS = ("whole", "short", "cyclic", "unordered", "endless")
FAULTS = (
    "none",
    "reset before", "reset after", "timeout after", "500 before", "500 after", "garbage after", "no connection", "busy",
    "another's job", "another's job for nothing",
)  # fmt: skip
STRANGER = ("stranger", "")


class KilledError(BaseException):
    """The process was killed: nothing of the engine may catch it."""


class OddProvider(OpenAIServer):
    """Truth: ``makers``, who asked for each job; ``wrongs``, requests that nobody may send.

    ``caller``: (machine, settings) of the process that sends requests now. ``job_fault``: what goes wrong with the next
    job request. ``kill_at``: the step, a request or a write of the journal, at which the process is killed.
    """

    def __init__(self, clock: FakeClock, metadata: str, listing: str, late_s: float) -> None:
        super().__init__(script=("running",))
        self._http.server_close()  # served in-process
        self.clock, self.metadata, self.listing, self.late_s = clock, metadata, listing, late_s
        self.makers: dict[str, tuple[str, str]] = {}
        self.times: dict[str, float] = {}
        self.wrongs: list[str] = []
        self.caller = STRANGER
        self.job_fault = "none"
        self.kill_at: int | None = None
        self.requests = self.cancelled = 0

    def step(self) -> None:
        """Count a step; the process is killed at number ``kill_at``."""
        if self.kill_at is not None:
            self.kill_at -= 1
            if self.kill_at < 0:
                self.kill_at = None
                raise KilledError

    def transport(self) -> httpx.MockTransport:
        return httpx.MockTransport(self._serve)

    def _serve(self, sent: httpx.Request) -> httpx.Response:
        self.step()
        self.requests += 1
        headers = {name.lower(): value for name, value in sent.headers.items()}
        request = Request(sent.method, sent.url.path, dict(sent.url.params), headers, sent.read())
        is_job = (request.method, request.path) == ("POST", "/v1/fine_tuning/jobs")
        reply = self._job_reply(request, sent) if is_job else self.answer(request)
        self.step()
        return httpx.Response(
            reply.status, content=reply.payload(), headers={"content-type": reply.content_type}
        )

    def _job_reply(self, request: Request, sent: httpx.Request) -> Reply:
        fault, self.job_fault = self.job_fault, "none"
        if fault == "no connection":
            raise httpx.ConnectError("refused", request=sent)
        if fault == "busy":
            return Reply(429, {"error": {"message": "slow down", "code": "rate_limit_exceeded"}})
        if fault in ("reset before", "500 before", "another's job for nothing"):
            reply = Reply(503, {"error": {"message": "unavailable"}})
        else:
            reply = self.answer(request)
        if fault.startswith("reset"):
            raise httpx.ReadError("reset by peer", request=sent)
        if fault.startswith("timeout"):
            raise httpx.ReadTimeout("timed out", request=sent)
        if fault.startswith("another's"):
            others = [job for job in self.jobs.values() if self._is_told_apart(job, request)]
            return Reply(200, others[-1]) if others else reply
        return {
            "500 after": Reply(500, {"error": {"message": "broken"}}),
            "garbage after": Reply(200, b'{"id": "ftjo'),
        }.get(fault, reply)

    def _is_told_apart(self, job: dict[str, Any], request: Request) -> bool:
        """Whether a job of somebody else differs from the requested one in anything that a reply shows."""
        if self.makers[job["id"]] == self.caller:
            return False
        key = (request.json().get("metadata") or {}).get("finetune_structured_run")
        told = (job["metadata"] or {}).get("finetune_structured_run")
        other = told is not None and told != key
        return other or job["hyperparameters"]["n_epochs"] != _epochs(request.json())

    def _new_job(self, body: dict[str, Any]) -> dict[str, Any]:
        job = super()._new_job(body)
        self.makers[job["id"]] = self.caller
        self.times[job["id"]] = self.clock.time_s
        job["created_at"] = int(self.clock.time_s)
        if self.metadata == "dropped":
            job["metadata"] = None
        if self.metadata == "rewritten":
            job["metadata"] = {name: f"x-{value}" for name, value in (job["metadata"] or {}).items()}
        return job

    def stranger_asks(self, file_id: str, epochs: int, metadata: dict[str, str] | None) -> None:
        """Another user of the same account trains the same file."""
        caller, self.caller = self.caller, STRANGER
        method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": epochs}}}
        self._new_job(
            {"model": "gpt-4o-mini", "training_file": file_id, "method": method, "metadata": metadata}
        )
        self.caller = caller

    def _list_jobs(self, request: Request) -> Reply:
        if self.listing == "endless":
            start = int(request.query.get("after", "x-0").partition("-")[2])
            rows = [{"id": f"x-{start + number}", "status": "succeeded"} for number in range(1, 101)]
            return Reply(200, {"object": "list", "data": rows, "has_more": True})
        everything = self.jobs
        shown = {key: job for key, job in everything.items() if self._is_listed(key)}
        if self.listing == "short":
            shown = dict(list(shown.items())[1:])
        if self.listing == "unordered":
            shown = dict(sorted(shown.items(), key=lambda item: item[0][::-1]))
        self.jobs = shown
        reply = super()._list_jobs(request)
        self.jobs = everything
        body = json.loads(reply.payload())
        return Reply(200, body | {"has_more": True}) if self.listing == "cyclic" else reply

    def _is_listed(self, job_id: str) -> bool:
        return self.clock.time_s >= self.times[job_id] + self.late_s

    def _cancel_job(self, request: Request, job_id: str) -> Reply:
        if self.makers[job_id][1] != self.caller[1]:
            self.wrongs.append(f"{self.caller} cancelled {job_id} of {self.makers[job_id]}")
        self.cancelled += 1
        return super()._cancel_job(request, job_id)

    def live(self, is_maker: Callable[[tuple[str, str]], bool]) -> list[str]:
        """The jobs that did not fail and were not cancelled, of some makers."""
        dead = ("failed", "cancelled")
        return [
            key for key, job in self.jobs.items() if job["status"] not in dead and is_maker(self.makers[key])
        ]

    def heal(self) -> None:
        """From now on everything is listed, at once, and no request fails."""
        self.listing, self.late_s, self.job_fault, self.kill_at = "whole", 0, "none", None


def _epochs(body: dict[str, Any]) -> object:
    return body["method"]["supervised"]["hyperparameters"]["n_epochs"]
