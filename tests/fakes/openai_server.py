"""OpenAI's files, fine-tuning, models and chat protocol on loopback, as strict as the real one.

Requests are checked against the parameter types of the ``openai`` SDK. A job advances by one status
of its ``script`` with each request for it, so that no test sleeps.
"""

from __future__ import annotations

import email.parser
import email.policy
import json
import time
from collections.abc import Callable, Iterator
from typing import Any, get_type_hints

from openai.types.chat.completion_create_params import (
    CompletionCreateParamsNonStreaming,
    CompletionCreateParamsStreaming,
)
from openai.types.fine_tuning import job_create_params
from openai.types.fine_tuning.job_create_params import JobCreateParams
from pydantic import TypeAdapter, ValidationError

from tests.fakes.answers import instance_of, schema_in
from tests.fakes.loopback import LoopbackServer, Reply, Request, route

DONE = ("validating_files", "queued", "running", "running", "succeeded")
_JOB = TypeAdapter(JobCreateParams)
_CHAT = TypeAdapter(CompletionCreateParamsNonStreaming)
_STREAMED_CHAT = TypeAdapter(CompletionCreateParamsStreaming)
_CHAT_FIELDS = set(get_type_hints(CompletionCreateParamsNonStreaming))


class OpenAIServer(LoopbackServer):
    """State: ``files``, ``jobs`` and ``events``, by id. ``base`` is the api_base.

    ``answer_chat``: body of a chat request -> the answer's text, or the arguments of the offered tool.
    ``logprobs``: text of an answer -> its ``logprobs.content``; None: none are given. ``refusal``: status with which
    requests for them are refused; None: they are not.
    """

    def __init__(
        self,
        *,
        key: str = "sk-test",
        script: tuple[str, ...] = DONE,
        file_statuses: tuple[str, ...] = ("processed",),
        keeps_metadata: bool = True,
        names_model: bool = True,
        extra_hyperparameters: tuple[str, ...] = (),
        models: dict[str, dict[str, Any]] | None = None,
        job_error: dict[str, Any] | None = None,
        answer_chat: Callable[[dict[str, Any]], str] | None = None,
        logprobs: Callable[[str], list[dict[str, Any]]] | None = None,
        refusal: int | None = None,
    ) -> None:
        super().__init__()
        self.key = key
        self.script = script
        self.file_statuses = file_statuses
        self.keeps_metadata = keeps_metadata
        self.names_model = names_model
        self.extra_hyperparameters = extra_hyperparameters
        self.models = models or {}
        self.job_error = job_error or {"code": "invalid_training_file", "message": "bad row", "param": None}
        self.answer_chat = answer_chat
        self.logprobs, self.refusal = logprobs, refusal
        self.files: dict[str, dict[str, Any]] = {}
        self.contents: dict[str, bytes] = {}
        self.jobs: dict[str, dict[str, Any]] = {}
        self.scripts: dict[str, list[str]] = {}
        self.events: dict[str, list[dict[str, Any]]] = {}
        self._file_looks: dict[str, int] = {}
        self._count = 0

    @property
    def base(self) -> str:
        return f"{self.origin}/v1"

    def answer(self, request: Request) -> Reply:
        authorization = request.headers.get("authorization")
        if authorization != f"Bearer {self.key}":  # some proxies repeat the key in their answer
            return _error(401, f"Incorrect API key provided: {authorization}.", "invalid_api_key")
        reply = route(
            [
                ("GET", r"/v1/files", self._list_files),
                ("POST", r"/v1/files", self._create_file),
                ("GET", r"/v1/files/([^/]+)", self._get_file),
                ("GET", r"/v1/files/([^/]+)/content", self._file_content),
                ("POST", r"/v1/fine_tuning/jobs", self._create_job),
                ("GET", r"/v1/fine_tuning/jobs", self._list_jobs),
                ("GET", r"/v1/fine_tuning/jobs/([^/]+)", self._get_job),
                ("POST", r"/v1/fine_tuning/jobs/([^/]+)/cancel", self._cancel_job),
                ("GET", r"/v1/fine_tuning/jobs/([^/]+)/events", self._list_events),
                ("GET", r"/v1/models/(.+)", self._get_model),
                ("POST", r"/v1/chat/completions", self._chat),
            ],
            request,
        )
        reply = reply or _error(404, f"Unknown request URL: {request.method} {request.path}", "unknown_url")
        if reply.status >= 400:
            self.refusals.append(f"{request.method} {request.path}: {reply.body}")
        return reply

    def _new_id(self, prefix: str) -> str:
        self._count += 1
        return f"{prefix}-{self._count:06d}"

    # -- files --

    def _create_file(self, request: Request) -> Reply:
        parts = _multipart(request)
        if set(parts) != {"file", "purpose"} or parts["purpose"][1] != b"fine-tune":
            return _error(400, f"expected file and purpose=fine-tune, got {sorted(parts)}")
        name, content = parts["file"]
        file: dict[str, Any] = {
            "id": self._new_id("file"),
            "object": "file",
            "bytes": len(content),
            "created_at": int(time.time()),
            "filename": name,
            "purpose": "fine-tune",
            "status": self.file_statuses[0],
        }
        self.files[file["id"]] = file
        self.contents[file["id"]] = content
        return Reply(200, file)

    def _list_files(self, request: Request) -> Reply:
        return _page(list(self.files.values())[::-1], request, default=10_000, named_ends=True)

    def _get_file(self, _: Request, file_id: str) -> Reply:
        if file_id not in self.files:
            return _error(404, f"No such File object: {file_id}")
        looks = self._file_looks[file_id] = self._file_looks.get(file_id, 0) + 1
        status = self.file_statuses[min(looks, len(self.file_statuses) - 1)]
        self.files[file_id]["status"] = status
        if status == "error":
            self.files[file_id]["status_details"] = "line 3 is not JSON"
        return Reply(200, self.files[file_id])

    def _file_content(self, _: Request, file_id: str) -> Reply:
        return Reply(200, self.contents[file_id], "application/octet-stream")

    # -- jobs --

    def _create_job(self, request: Request) -> Reply:
        body = request.json()
        if problem := self._job_problem(body):
            return _error(400, problem, "invalid_request_error")
        file = self.files.get(body["training_file"])
        if file is None:
            return _error(400, f"invalid training_file: {body['training_file']}", "invalid_training_file")
        if file["status"] != "processed":
            message = (
                f"File '{file['id']}' is still being processed and is not ready to be used for fine-tuning."
            )
            return _error(400, message, "invalid_request_error")
        job = self._new_job(body)
        return Reply(200, job)

    def _job_problem(self, body: dict[str, Any]) -> str | None:
        body = json.loads(json.dumps(body))
        for name in self.extra_hyperparameters:
            body.get("hyperparameters", {}).pop(name, None)
        try:
            _JOB.validate_python(body)
        except ValidationError as error:
            return str(error)
        return (
            _unknown_keys(body, get_type_hints(JobCreateParams))
            or _unknown_keys(body.get("hyperparameters"), get_type_hints(job_create_params.Hyperparameters))
            or _metadata_problem(body.get("metadata"))
        )

    def _new_job(self, body: dict[str, Any]) -> dict[str, Any]:
        job_id = self._new_id("ftjob")
        given = body.get("method", {}).get("supervised", {}).get("hyperparameters") or body.get(
            "hyperparameters"
        )
        known = {
            k: v for k, v in (given or {}).items() if k in get_type_hints(job_create_params.Hyperparameters)
        }
        job = {
            "id": job_id,
            "object": "fine_tuning.job",
            "created_at": int(time.time()),
            "error": None,
            "fine_tuned_model": None,
            "finished_at": None,
            "hyperparameters": {"n_epochs": "auto"} | known,
            "model": body["model"],
            "organization_id": "org-test",
            "result_files": [],
            "status": self.script[0],
            "trained_tokens": None,
            "training_file": body["training_file"],
            "validation_file": body.get("validation_file"),
            "seed": body.get("seed") or 7,
            "metadata": body.get("metadata") if self.keeps_metadata else None,
        }
        self.jobs[job_id] = job
        self.scripts[job_id] = list(self.script[1:])
        self.events[job_id] = []
        self._event(job_id, f"Created fine-tuning job: {job_id}")
        return job

    def _get_job(self, _: Request, job_id: str) -> Reply:
        if job_id not in self.jobs:
            return _error(404, f"Could not find fine tune: {job_id}", "fine_tune_not_found")
        job = self.jobs[job_id]
        if self.scripts[job_id]:
            self._move(job, self.scripts[job_id].pop(0))
        return Reply(200, job)

    def _move(self, job: dict[str, Any], status: str) -> None:
        job["status"] = status
        if status == "running":
            step = sum("step" in (event["data"] or {}) for event in self.events[job["id"]]) + 1
            data = {"step": step, "total_steps": 10, "train_loss": 1 / step, "train_mean_token_accuracy": 0.5}
            self._event(job["id"], f"Step {step}/10: training loss={1 / step:.2f}", data)
        if status.lower() in ("succeeded", "completed"):
            job["finished_at"] = job["created_at"] + 60
            job["trained_tokens"] = 1000
            if self.names_model:
                job["fine_tuned_model"] = f"ft:{job['model']}:test::{job['id']}"
        if status.lower() in ("failed", "error"):
            job["error"] = self.job_error

    def _event(self, job_id: str, message: str, data: dict[str, Any] | None = None) -> None:
        event = {
            "object": "fine_tuning.job.event",
            "id": self._new_id("ftevent"),
            "created_at": int(time.time()),
            "level": "info",
            "message": message,
            "type": "metrics" if data else "message",
            "data": data or {},
        }
        self.events[job_id].insert(0, event)

    def _list_jobs(self, request: Request) -> Reply:
        jobs = list(self.jobs.values())[::-1]
        wanted = {k[9:-1]: v for k, v in request.query.items() if k.startswith("metadata[")}
        if self.keeps_metadata:
            jobs = [j for j in jobs if wanted.items() <= (j["metadata"] or {}).items()]
        return _page(jobs, request, default=20)

    def _list_events(self, request: Request, job_id: str) -> Reply:
        return _page(self.events.get(job_id, []), request, default=20)

    def _cancel_job(self, _: Request, job_id: str) -> Reply:
        job = self.jobs[job_id]
        if job["status"] in ("succeeded", "failed", "cancelled"):
            return _error(400, f"Job has already completed: {job_id}", "invalid_request_error")
        self.scripts[job_id] = []
        job["status"] = "cancelled"
        return Reply(200, job)

    def _get_model(self, _: Request, model: str) -> Reply:
        if model not in self.models:
            return _error(404, f"The model '{model}' does not exist", "model_not_found")
        return Reply(
            200, {"id": model, "object": "model", "created": 1, "owned_by": "test"} | self.models[model]
        )

    # -- chat --

    def _chat(self, request: Request) -> Reply:
        body = request.json()
        if problem := _chat_problem(body):
            return _error(400, problem, "invalid_request_error")
        if body.get("logprobs") and self.refusal is not None:
            return _error(self.refusal, "You are not allowed to request logprobs from this model")
        message: dict[str, Any] = {"role": "assistant", "content": None, "refusal": None}
        is_call = bool(body.get("tools")) and body["messages"][-1]["role"] != "tool"
        if is_call:
            call = {"name": body["tools"][0]["function"]["name"], "arguments": self._arguments(body)}
            message["tool_calls"] = [{"id": self._new_id("call"), "type": "function", "function": call}]
        else:
            message["content"] = self._text(body)
        logprobs = None
        if body.get("logprobs") and self.logprobs is not None and not is_call:
            logprobs = {"content": self.logprobs(message["content"]), "refusal": None}
        completion = {
            "id": self._new_id("chatcmpl"),
            "object": "chat.completion",
            "created": int(time.time()),
            "model": body["model"],
            "choices": [
                {
                    "index": 0,
                    "message": message,
                    "finish_reason": "tool_calls" if is_call else "stop",
                    "logprobs": logprobs,
                }
            ],
            "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
        }
        if body.get("stream"):
            return Reply(200, b"".join(_streamed(completion)), "text/event-stream")
        return Reply(200, completion)

    def _arguments(self, body: dict[str, Any]) -> str:
        if self.answer_chat is not None:
            return self.answer_chat(body)
        return json.dumps(instance_of(body["tools"][0]["function"]["parameters"]))

    def _text(self, body: dict[str, Any]) -> str:
        if self.answer_chat is not None:
            return self.answer_chat(body)
        if body.get("response_format"):
            return json.dumps(instance_of(body["response_format"]["json_schema"]["schema"]))
        schema = schema_in("\n".join(str(m.get("content")) for m in body["messages"]))
        return json.dumps(instance_of(schema)) if schema else "1. What is cited?"


def _chat_problem(body: dict[str, Any]) -> str | None:
    if body.get("tool_choice") is not None and not body.get("tools"):
        return "Invalid value for 'tool_choice': 'tool_choice' is only allowed when 'tools' are specified."
    try:
        (_STREAMED_CHAT if body.get("stream") else _CHAT).validate_python(body)
    except ValidationError as error:
        return str(error)
    return _unknown_keys(body, dict.fromkeys(_CHAT_FIELDS))


def _streamed(completion: dict[str, Any]) -> Iterator[bytes]:
    """The completion as server-sent events, then the reason to stop: the message in one delta, or one a token."""
    choice = completion["choices"][0]
    delta = {key: value for key, value in choice["message"].items() if key != "refusal"}
    calls = [{"index": at, **call} for at, call in enumerate(delta.pop("tool_calls", ()))]
    whole: dict[str, Any] = {
        "index": 0,
        "delta": delta | ({"tool_calls": calls} if calls else {}),
        "finish_reason": None,
    }
    tokens = (choice["logprobs"] or {}).get("content") or ()
    single: list[dict[str, Any]] = [
        {
            "index": 0,
            "delta": {"content": one["token"]},
            "logprobs": {"content": [one]},
            "finish_reason": None,
        }
        for one in tokens
    ]
    parts: list[dict[str, Any]] = [
        *(single or [whole]),
        {"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]},
    ]
    for part in parts:
        chunk = completion | {"object": "chat.completion.chunk", "choices": [part], "usage": None}
        yield f"data: {json.dumps(chunk)}\n\n".encode()
    yield b"data: [DONE]\n\n"


def _unknown_keys(body: dict[str, Any] | None, known: dict[str, Any]) -> str | None:
    unknown = set(body or {}) - set(known)
    return f"Unrecognized request argument supplied: {sorted(unknown)}" if unknown else None


def _metadata_problem(metadata: dict[str, str] | None) -> str | None:
    for name, value in (metadata or {}).items():
        if len(name) > 64 or len(value) > 512:
            return f"metadata {name!r} is too long"
    return "more than 16 metadata pairs" if len(metadata or {}) > 16 else None


def _error(status: int, message: str, code: str | None = None) -> Reply:
    body = {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}}
    return Reply(status, body, headers={"x-request-id": "req-test"})


def _page(rows: list[dict[str, Any]], request: Request, *, default: int, named_ends: bool = False) -> Reply:
    ids = [row["id"] for row in rows]
    start = ids.index(request.query["after"]) + 1 if request.query.get("after") in ids else 0
    limit = int(request.query.get("limit", default))
    data = rows[start : start + limit]
    body: dict[str, Any] = {"object": "list", "data": data, "has_more": start + limit < len(rows)}
    if named_ends:
        body |= {"first_id": data[0]["id"] if data else "", "last_id": data[-1]["id"] if data else ""}
    return Reply(200, body)


def _multipart(request: Request) -> dict[str, tuple[str | None, bytes]]:
    head = f"Content-Type: {request.headers['content-type']}\r\n\r\n".encode()
    message: Any = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + request.body)
    parts = {}
    for part in message.iter_parts():
        name = part.get_param("name", header="content-disposition")
        parts[str(name)] = (part.get_filename(), part.get_payload(decode=True))
    return parts
