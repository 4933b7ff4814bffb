"""The guards of all routes, of both protocols: who may use each, how much it takes, and how many may wait."""

from __future__ import annotations

import re
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from llama_index_finetune_structured.service.app import create_app
from llama_index_finetune_structured.service.call_queue import CallQueue
from llama_index_finetune_structured.service.embeddings_models import EmbeddingModels
from llama_index_finetune_structured.service.gradient_api.adapters import base_model_id
from llama_index_finetune_structured.service.keys import EVERY_SCOPE
from llama_index_finetune_structured.service.settings import ServiceSettings

OPEN = "without a key"
ANY = "any key"
ROUTES = {
    "GET /": OPEN,
    "GET /page/app.js": OPEN,
    "GET /page/style.css": OPEN,
    "GET /healthz": OPEN,
    "GET /readyz": OPEN,
    "GET /metrics": ANY,
    "GET /v1/models": ANY,
    "GET /v1/models/{model}": ANY,
    "DELETE /v1/models/{model}": "fine_tuning",
    "GET /v1/files": "files",
    "POST /v1/files": "files",
    "GET /v1/files/{file_id}": "files",
    "DELETE /v1/files/{file_id}": "files",
    "GET /v1/files/{file_id}/content": "files",
    "POST /v1/uploads": "files",
    "POST /v1/uploads/{upload_id}/parts": "files",
    "POST /v1/uploads/{upload_id}/complete": "files",
    "POST /v1/uploads/{upload_id}/cancel": "files",
    "POST /v1/fine_tuning/checks": "fine_tuning",
    "GET /v1/fine_tuning/jobs": "fine_tuning",
    "POST /v1/fine_tuning/jobs": "fine_tuning",
    "GET /v1/fine_tuning/jobs/{job_id}": "fine_tuning",
    "POST /v1/fine_tuning/jobs/{job_id}/cancel": "fine_tuning",
    "POST /v1/fine_tuning/jobs/{job_id}/pause": "fine_tuning",
    "POST /v1/fine_tuning/jobs/{job_id}/resume": "fine_tuning",
    "GET /v1/fine_tuning/jobs/{job_id}/events": "fine_tuning",
    "GET /v1/fine_tuning/jobs/{job_id}/checkpoints": "fine_tuning",
    "GET /v1/fine_tuning/jobs/{job_id}/scorecard": "fine_tuning",
    "POST /v1/fine_tuning/jobs/{job_id}/scorecard": "fine_tuning",
    "GET /v1/fine_tuning/jobs/{job_id}/scorecard/report": "fine_tuning",
    "POST /v1/chat/completions": "chat",
    "POST /v1/completions": "chat",
    "POST /v1/embeddings": "chat",
    "GET /v1/keys": "admin",
    "POST /v1/keys": "admin",
    "GET /v1/keys/current": ANY,
    "DELETE /v1/keys/{key_id}": "admin",
    "GET /api/models": ANY,
    "POST /api/models": "fine_tuning",
    "GET /api/models/{model_id}": ANY,
    "DELETE /api/models/{model_id}": "fine_tuning",
    "POST /api/models/{model_id}/fine-tune": "fine_tuning",
    "POST /api/models/{model_id}/complete": "chat",
}
GUARDED = [route for route, scope in ROUTES.items() if scope is not OPEN]
CALLS: dict[str, Any] = {
    "/v1/chat/completions": {"model": "tiny", "messages": [{"role": "user", "content": "a"}]},
    "/v1/completions": {"model": "tiny", "prompt": "a"},
    "/v1/embeddings": {"model": "words", "input": "a"},
    f"/api/models/{base_model_id('tiny')}/complete": {"query": "a"},
}


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    """A service with a key for each scope, for all but one, and for none."""
    settings = ServiceSettings(
        folder=tmp_path_factory.mktemp("service"),
        bases={"tiny": "/no/such/base"},
        embeddings={"words": "/no/such/model"},
        workers=False,
    )
    return create_app(settings)


@pytest.fixture(scope="module")
def secrets(app: FastAPI) -> dict[str, str]:
    """Keys: of each scope alone, of all but one, and of none."""
    scopes: dict[str, list[str]] = {"none": []}
    for scope in EVERY_SCOPE:
        scopes |= {scope: [scope], f"not {scope}": [other for other in EVERY_SCOPE if other != scope]}
    return {name: app.state.keys.add(name, scopes=found) for name, found in scopes.items()}


def sent(app: FastAPI, route: str, secret: str | None, **headers: str) -> Any:
    """The reply to an empty request of a route."""
    client = TestClient(app, base_url="http://127.0.0.1", client=("127.0.0.1", 50000))
    method, path = route.split()
    if secret is not None:
        headers["authorization"] = f"Bearer {secret}"
    content = b"{}" if method == "POST" else None
    headers = {"content-type": "application/json", **headers}
    return client.request(method, re.sub(r"\{\w+\}", "x", path), content=content, headers=headers)


def require_error(reply: Any, status: int) -> None:
    """The reply is an error in the form of its route's protocol."""
    assert reply.status_code == status, reply.text
    is_gradient = reply.request.url.path.startswith("/api/")
    assert set(reply.json()) == ({"type", "message"} if is_gradient else {"error"})


def test_the_table_has_every_route(app: FastAPI) -> None:
    described = app.openapi()["paths"]
    assert {f"{method.upper()} {path}" for path, methods in described.items() for method in methods} == set(
        ROUTES
    )


@pytest.mark.parametrize("route", GUARDED)
def test_a_route_takes_keys_of_its_scope_alone_and_no_large_body(
    app: FastAPI, secrets: dict[str, str], route: str
) -> None:
    scope = ROUTES[route]
    require_error(sent(app, route, None), 401)
    require_error(sent(app, route, "wrong"), 401)
    if scope is ANY:
        assert sent(app, route, secrets["none"]).status_code not in (401, 403)
    else:
        require_error(sent(app, route, secrets[f"not {scope}"]), 403)
        assert sent(app, route, secrets[scope]).status_code not in (401, 403)
    if route.startswith("POST"):
        require_error(sent(app, route, secrets["none"], **{"content-length": str(1 << 40)}), 413)


@pytest.mark.parametrize("path", CALLS)
def test_a_call_of_a_model_is_refused_where_too_many_wait(
    app: FastAPI, secrets: dict[str, str], path: str
) -> None:
    app.state.calls = CallQueue(app.state.pool, most_waiting=0)
    app.state.embeddings = EmbeddingModels({"words": "/no/such/model"}, most_waiting=0)
    client = TestClient(app, base_url="http://127.0.0.1", client=("127.0.0.1", 50000))
    reply = client.post(path, json=CALLS[path], headers={"authorization": f"Bearer {secrets['chat']}"})
    require_error(reply, 429)
    assert int(reply.headers["retry-after"]) > 0


def test_a_name_that_is_kept_has_an_end(app: FastAPI, secrets: dict[str, str]) -> None:
    client = TestClient(app, base_url="http://127.0.0.1", client=("127.0.0.1", 50000))
    headers = {"authorization": f"Bearer {secrets['not admin']}"}
    long = "n" * 300
    bodies = {
        "/v1/uploads": {"filename": long, "bytes": 5, "mime_type": "x", "purpose": "fine-tune"},
        "/v1/fine_tuning/jobs": {"model": "tiny", "training_file": "file-x", "suffix": long},
        "/api/models": {"model": {"baseModelId": base_model_id("tiny"), "name": long}},
    }
    for path, body in bodies.items():
        require_error(client.post(path, json=body, headers=headers), 400)
