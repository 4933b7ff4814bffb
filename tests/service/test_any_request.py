"""Requests made from the service's own description, valid and not: each has a reply below 500, and nothing is left.

What runs: hypothesis draws, from a seed, an operation and a request for it (schemathesis makes them); three of four ids
in it are replaced by ids of files, uploads, jobs and models that are there, so that requests get past the first check.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis.specs.openapi.schemas  # now: imported by a test, it is parsed beside a running server
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from sqlalchemy import update

from llama_index_finetune_structured.service.database import jobs, models
from llama_index_finetune_structured.service.job_requests import ENDED
from llama_index_finetune_structured.service.keys import EVERY_SCOPE, KeyStore
from tests import random_adapters
from tests.service.chat.chat_server import ChatServer
from tests.service.openai_replies import require_described
from tests.service.serving import rows, stored

_SLOWEST_S = 60.0  # a reply takes milliseconds, on a machine with others at work
_NEWEST = 40  # ids of a kind that are used again
_KINDS = ("file-", "upload_", "part_", "ftjob-", "ft:", "key_")
_ADAPTERS = "_model_adapter"  # the end of an id of Gradient's protocol


class Requests:
    """Requests to a server and what came of them."""

    def __init__(self, server: ChatServer, key: str, chance: random.Random) -> None:
        self.server, self.chance = server, chance
        self.session = requests.Session()
        self.session.headers["Authorization"] = f"Bearer {key}"
        self.statuses: Counter[int] = Counter()
        self.faults: list[str] = []
        self.ids: dict[str, list[str]] = {kind: [] for kind in (*_KINDS, _ADAPTERS)}
        self.slowest = 0.0
        (self.base,) = (model["id"] for model in self.ask("GET", "/api/models?onlyBase=true")["models"])
        schema = schemathesis.openapi.from_dict(server.app.openapi())
        self.cases = [
            operation.ok().as_strategy(generation_mode=mode)
            for operation in schema.get_all_operations()
            for mode in GenerationMode
            if mode is GenerationMode.POSITIVE or _has_input(operation.ok())
        ]

    def send(self, case: Case[Any]) -> None:
        """Send one request, and note what is wrong with its reply."""
        self._name_what_exists(case)
        asked = case.as_transport_kwargs(base_url=self.server.url.removesuffix("/v1"))
        begun, what = time.monotonic(), f"{asked['method']} {asked['url']} {str(asked)[:600]}"
        try:
            with self.session.request(**asked, timeout=_SLOWEST_S, stream=True) as reply:
                if "event-stream" in reply.headers.get("content-type", ""):
                    next(reply.iter_content(1))  # a job's goes on until the job has ended
                    content: Any = None
                else:
                    content = (
                        reply.json() if "json" in reply.headers.get("content-type", "") else reply.content
                    )
        except (requests.exceptions.InvalidHeader, requests.exceptions.InvalidURL, UnicodeError):
            return  # which no client of HTTP can send
        except requests.RequestException as error:
            self.faults.append(f"{what}: {error!r}")
            return
        self.slowest = max(self.slowest, time.monotonic() - begun)
        self.statuses[reply.status_code] += 1
        if reply.status_code >= 500:
            self.faults.append(f"{what}: {reply.status_code} {content}")
        if isinstance(content, dict):
            self._learn(content)
            try:
                if case.path.startswith("/api/"):
                    assert reply.ok or set(content) == {"type", "message"}, content
                else:
                    require_described(str(asked["method"]), case.path, reply.status_code, content)
            except Exception as error:
                self.faults.append(f"{what}: {error}")

    def ask(self, method: str, path: str, **options: Any) -> Any:
        """The JSON of a reply that must be good. ``path``: below ``/v1``, or one of Gradient's protocol."""
        root = self.server.url.removesuffix("/v1") if path.startswith("/api/") else self.server.url
        reply = self.session.request(method, f"{root}{path}", **options)
        reply.raise_for_status()
        return reply.json()

    def _learn(self, content: dict[str, Any]) -> None:
        for one in (content, *(content["data"] if isinstance(content.get("data"), list) else ())):
            found = str(one.get("id", ""))
            for kind, known in self.ids.items():
                if (found.startswith(kind) or found.endswith(kind)) and found not in known:
                    known.append(found)

    def _known(self, kind: str, other: Any) -> Any:
        known = self.ids[kind][-_NEWEST:]
        return self.chance.choice(known) if known and self.chance.random() < 0.75 else other

    def _name_what_exists(self, case: Case[Any]) -> None:
        kinds = {
            "file_id": "file-",
            "upload_id": "upload_",
            "job_id": "ftjob-",
            "model": "ft:",
            "key_id": "key_",
            "model_id": _ADAPTERS,
        }
        for name, kind in kinds.items():
            if name in case.path_parameters:
                case.path_parameters[name] = self._known(kind, case.path_parameters[name])
        if isinstance(case.query, dict) and "after" in case.query:
            case.query["after"] = self._known(
                "ftjob-" if "jobs" in case.path else "file-", case.query["after"]
            )
        body = case.body
        if not isinstance(body, dict):
            return
        for name, kind in (("training_file", "file-"), ("validation_file", "file-")):
            if name in body:
                body[name] = self._known(kind, body[name])
        if isinstance(model := body.get("model"), dict):
            model["baseModelId"] = self.base
        if "maxGeneratedTokenCount" in body:
            body["maxGeneratedTokenCount"] = self.chance.choice([1, 2])
        if "part_ids" in body:
            body["part_ids"] = [self._known("part_", "part_x")]
        if isinstance(body.get("model"), str) and self.chance.random() < 0.75:
            body["model"] = "tiny" if "training_file" in body else self._known("ft:", "tiny")
        if "completions" in case.path and isinstance(
            body.get("model"), str
        ):  # answers are not what is tested
            body["max_tokens"], body["n"] = self.chance.choice([1, 2, 5]), self.chance.choice([None, 1, 2])
            body.pop("max_completion_tokens", None)


def _has_input(operation: Any) -> bool:
    parts = (operation.path_parameters, operation.query, operation.body)
    return any(list(part) for part in parts)


def _send_many(server: ChatServer, key: str, count: int, number: int) -> Requests:
    sent = Requests(server, key, random.Random(number))
    for purpose in ("fine-tune", "batch"):
        form = {"purpose": purpose}
        sent.ask("POST", "/files", data=form, files={"file": ("a.jsonl", rows())})
    adapter = {"model": {"baseModelId": sent.base, "name": "a"}}
    sent._learn(sent.ask("POST", "/api/models", json=adapter))
    for path in ("/files", "/models", "/fine_tuning/jobs"):
        sent._learn(sent.ask("GET", path))

    @seed(number)
    @given(st.data())
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def send_one(data: st.DataObject) -> None:
        sent.send(data.draw(data.draw(st.sampled_from(sent.cases))))

    send_one()
    return sent


def _delete_all(sent: Requests) -> None:
    """Delete and end all that is there, as a client does."""
    for upload in sent.ids["upload_"]:
        sent.session.post(f"{sent.server.url}/uploads/{upload}/cancel")
    for job in sent.ask("GET", "/fine_tuning/jobs?limit=1000")["data"]:
        if job["status"] not in ENDED:
            sent.ask("POST", f"/fine_tuning/jobs/{job['id']}/cancel")
    for model in sent.ask("GET", "/api/models")["models"]:
        if model["type"] == "modelAdapter":
            sent.ask("DELETE", f"/api/models/{model['id']}")
    for file in sent.ask("GET", "/files")["data"]:
        sent.ask("DELETE", f"/files/{file['id']}")


@pytest.fixture
def server(tiny_llama: Path, tmp_path: Path) -> ChatServer:
    server = ChatServer(tmp_path / "service", {"tiny": tiny_llama})
    for number in range(2):
        adapter = random_adapters.save(tiny_llama, tmp_path / f"adapter-{number}", seed=number)
        server.add(f"ft:tiny:local::{number:012}", "tiny", adapter)
    return server


def _key(server: ChatServer) -> str:
    """A key of all scopes, which the models and their jobs belong to."""
    store: KeyStore = server.app.state.keys
    secret = store.add("all", scopes=EVERY_SCOPE)
    key = store.find(secret)
    assert key is not None
    with server.app.state.database.write() as connection:
        for table in (models, jobs):
            connection.execute(update(table).values(owner=key.id))
    return secret


def _survives(server: ChatServer, count: int, number: int) -> None:
    """Send so many requests: each has a reply below 500, and in the end nothing is left."""
    threads = threading.active_count()
    with server.running():
        sent = _send_many(server, _key(server), count, number)
        print(f"{sent.statuses.total()} requests, {dict(sent.statuses)}, the slowest {sent.slowest:.1f} s")
        assert not sent.faults, "\n".join([f"{len(sent.faults)} faults", *sent.faults[:20]])
        assert sent.statuses.total() >= 0.95 * count
        assert {200, 400, 404} <= set(sent.statuses)
        server.wait_until_idle(60)
        _delete_all(sent)
        sent.session.close()
    assert stored(server.folder) == []
    assert threading.active_count() <= threads + 8


def test_hundreds_of_requests_of_any_kind_break_nothing_and_leave_nothing(server: ChatServer) -> None:
    _survives(server, 300, 1)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(2, 12))
def test_twenty_thousand_requests_of_any_kind_break_nothing_and_leave_nothing(
    server: ChatServer, number: int
) -> None:
    _survives(server, 2000, number)
