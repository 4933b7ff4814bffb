"""Keys, quotas and limits: who may do what, and what replies and logs never hold."""

from __future__ import annotations

import json
import logging
import socket
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from llama_index_finetune_structured.cli import app as cli
from llama_index_finetune_structured.errors import ConfigurationError, EngineError
from llama_index_finetune_structured.service.app import create_app
from llama_index_finetune_structured.service.database import Database
from llama_index_finetune_structured.service.keys import KeyStore
from llama_index_finetune_structured.service.settings import ServiceSettings
from tests.service.conftest import Running, Trained
from tests.service.openai_replies import require_described
from tests.service.serving import rows, sdk

BASES = {"tiny": "/no/such/base"}


@pytest.fixture
def settings(tmp_path: Path) -> ServiceSettings:
    return ServiceSettings(folder=tmp_path, bases=BASES, workers=False, max_body_bytes=1000)


@pytest.fixture
def app(settings: ServiceSettings) -> FastAPI:
    return create_app(settings)


def _local(app: FastAPI, client: str = "127.0.0.1", base: str = "http://127.0.0.1") -> TestClient:
    return TestClient(app, base_url=base, client=(client, 50000), raise_server_exceptions=False)


def test_a_key_sees_nothing_of_another(service: Running, trained: Trained) -> None:
    other, job, name = service.client(), trained.job, trained.job.fine_tuned_model
    assert not list(other.files.list())
    assert not list(other.fine_tuning.jobs.list())
    assert [model.id for model in other.models.list()] == ["tiny"]
    calls: list[Callable[[], Any]] = [
        lambda: other.files.retrieve(job.training_file),
        lambda: other.files.content(job.result_files[0]),
        lambda: other.files.delete(job.training_file),
        lambda: other.fine_tuning.jobs.create(model="tiny", training_file=job.training_file),
        lambda: other.fine_tuning.jobs.retrieve(job.id),
        lambda: other.fine_tuning.jobs.cancel(job.id),
        lambda: other.fine_tuning.jobs.list_events(job.id),
        lambda: other.fine_tuning.jobs.checkpoints.list(job.id),
        lambda: other.models.retrieve(name),
        lambda: other.models.delete(name),
    ]
    for call in calls:
        with pytest.raises(openai.NotFoundError):
            call()
    assert trained.client.models.retrieve(name).id == name


def test_a_key_does_only_what_its_scopes_allow(service: Running) -> None:
    reader = service.client(scopes=["chat"])
    assert [model.id for model in reader.models.list()] == ["tiny"]
    for call in (reader.files.list, reader.fine_tuning.jobs.list, lambda: reader.models.delete("tiny")):
        with pytest.raises(openai.PermissionDeniedError, match="has no scope"):
            call()


@pytest.mark.parametrize("key", ["wrong", "fts-", "Bearer", "x" * 5000])
def test_a_wrong_key_is_refused(service: Running, key: str) -> None:
    for headers in ({"authorization": f"Bearer {key}"}, {"authorization": key}, {}):
        reply = httpx.get(f"{service.base}/v1/files", headers=headers)
        assert reply.status_code == 401
        require_described("GET", "/v1/files", 401, reply.json())
    assert httpx.get(f"{service.base}/metrics").status_code == 401
    assert httpx.get(f"{service.base}/healthz").status_code == 200


def test_quotas_of_stored_bytes_and_of_jobs_hold_for_each_key(service: Running) -> None:
    small = service.client(max_stored_bytes=1000, max_waiting_jobs=1)
    first = small.files.create(file=("a.jsonl", rows(4)), purpose="fine-tune")
    with pytest.raises(openai.RateLimitError) as refused:
        small.files.create(file=("b.jsonl", b"{ }\n" * 200), purpose="fine-tune")
    assert refused.value.code == "insufficient_quota"
    with pytest.raises(openai.RateLimitError):
        small.uploads.create(filename="b", bytes=900, mime_type="x", purpose="fine-tune")
    jobs = small.fine_tuning.jobs
    job = jobs.create(model="tiny", training_file=first.id, hyperparameters={"n_epochs": 50})
    with pytest.raises(openai.RateLimitError, match="as many as it may have"):
        jobs.create(model="tiny", training_file=first.id)
    jobs.cancel(job.id)
    jobs.cancel(jobs.create(model="tiny", training_file=first.id).id)
    assert service.client().files.create(file=("b.jsonl", b"{ }\n" * 200), purpose="fine-tune").bytes == 800


def test_what_was_made_without_keys_is_the_first_ones(tmp_path: Path, tiny_llama: Path) -> None:
    app = create_app(ServiceSettings(folder=tmp_path, bases={"tiny": str(tiny_llama)}, workers=False))
    upload = {"filename": "b", "bytes": 9, "mime_type": "x", "purpose": "fine-tune"}
    with _local(app) as here:
        form = {"purpose": "fine-tune"}
        file = here.post("/v1/files", data=form, files={"file": ("a.jsonl", rows(2))}).json()["id"]
        job = here.post("/v1/fine_tuning/jobs", json={"model": "tiny", "training_file": file}).json()["id"]
        begun = here.post("/v1/uploads", json=upload).json()["id"]
        (base,) = here.get("/api/models").json()["models"]
        model = {"name": "n", "baseModelId": base["id"]}
        adapter = here.post("/api/models", json={"model": model}).json()["id"]
    paths = [f"/v1/files/{file}", f"/v1/fine_tuning/jobs/{job}", f"/api/models/{adapter}"]
    first, second = ({"authorization": f"Bearer {app.state.keys.add(name)}"} for name in "ab")
    with _local(app) as here:
        assert [here.get(path, headers=first).status_code for path in paths] == [200, 200, 200]
        assert here.post(f"/v1/uploads/{begun}/cancel", headers=first).status_code == 200
        assert [here.get(path, headers=second).status_code for path in paths] == [404, 404, 404]


def test_models_adapters_and_jobs_of_a_key_are_limited_together(tmp_path: Path, tiny_llama: Path) -> None:
    bases = {"tiny": str(tiny_llama)}
    app = create_app(ServiceSettings(folder=tmp_path, bases=bases, workers=False, max_models=3))
    keys = [{"authorization": f"Bearer {app.state.keys.add(name)}"} for name in "ab"]

    def make(way: str, headers: dict[str, str]) -> Any:
        with _local(app) as here:
            if way == "adapter":
                (base,) = here.get("/api/models?onlyBase=true", headers=headers).json()["models"]
                model = {"name": "n", "baseModelId": base["id"]}
                return here.post("/api/models", json={"model": model}, headers=headers)
            form = {"purpose": "fine-tune"}
            file = here.post(
                "/v1/files", headers=headers, data=form, files={"file": ("a.jsonl", rows(2))}
            ).json()
            body = {"model": "tiny", "training_file": file["id"]}
            return here.post("/v1/fine_tuning/jobs", json=body, headers=headers)

    for way in ("job", "adapter", "job"):
        assert make(way, keys[0]).status_code == 200
    for way in ("job", "adapter"):
        refused = make(way, keys[0])
        assert refused.status_code == 429
        assert "3 models, those of unfinished jobs included" in refused.text
        assert make(way, keys[1]).status_code == 200
    with _local(app) as here:
        newest = here.get("/v1/fine_tuning/jobs", headers=keys[0]).json()["data"][0]["id"]
        here.post(f"/v1/fine_tuning/jobs/{newest}/cancel", headers=keys[0])
    assert make("adapter", keys[0]).status_code == 200


def test_without_keys_only_this_machine_is_answered_and_no_page_of_another_site(app: FastAPI) -> None:
    with _local(app) as here:
        assert here.get("/v1/files").status_code == 200
        assert here.get("/v1/files", headers={"origin": "http://127.0.0.1"}).status_code == 200
        assert here.get("/v1/files", headers={"origin": "https://evil.example"}).status_code == 403
    assert _local(app, client="192.0.2.1").get("/v1/files").status_code == 401
    assert _local(app, base="http://evil.example").get("/v1/files").status_code == 401


def test_revoking_the_last_key_does_not_open_the_service(app: FastAPI, settings: ServiceSettings) -> None:
    store: KeyStore = app.state.keys
    secret = store.add("only")
    client = _local(app)
    assert client.get("/v1/files", headers={"authorization": f"Bearer {secret}"}).status_code == 200
    store.revoke("only")
    assert client.get("/v1/files", headers={"authorization": f"Bearer {secret}"}).status_code == 401
    assert client.get("/v1/files").status_code == 401
    with pytest.raises(ConfigurationError, match="a key 'only' already"):
        store.add("only")
    with pytest.raises(ConfigurationError, match="no key 'other'"):
        store.revoke("other")
    assert secret.encode() not in settings.database_path.read_bytes()


def test_the_commands_make_list_and_revoke_keys(tmp_path: Path) -> None:
    def run(*words: str) -> Any:
        result = CliRunner().invoke(cli, ["keys", *words, "--folder", str(tmp_path), "--json"])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    first = CliRunner().invoke(cli, ["keys", "add", "zoe", "--folder", str(tmp_path / "new")])
    assert "The first key of" in first.stderr, "of a folder that is no service's it opens nothing"
    secret = run("add", "alice", "--scope", "chat", "--stored-bytes", "5")["key"]
    assert len(secret) > 40
    again = CliRunner().invoke(cli, ["keys", "add", "bob", "--folder", str(tmp_path)])
    assert "first key" not in again.stderr
    run("revoke", "bob")
    assert run("list")[:1] == [
        {"name": "alice", "id": run("list")[0]["id"], "scopes": ["chat"], "revoked": False}
    ]
    run("revoke", "alice")
    assert run("list")[0]["revoked"] is True
    wrong = CliRunner().invoke(cli, ["keys", "add", "b", "--scope", "all", "--folder", str(tmp_path)])
    assert wrong.exit_code == 1
    assert "expected of chat, files, fine_tuning, admin" in " ".join(wrong.stderr.split())


def test_the_command_listens_on_no_other_address_without_a_key(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["serve", "--folder", str(tmp_path), "--host", "0.0.0.0"])
    assert result.exit_code == 1
    assert "other machines could use the service without a key" in " ".join(result.stderr.split())


def test_a_port_that_is_taken_is_told_before_anything_is_served(tmp_path: Path, tiny_llama: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        asked = ["serve", "--folder", str(tmp_path), "--port", port, "--base", f"tiny={tiny_llama}"]
        result = CliRunner().invoke(cli, asked)
    assert result.exit_code == 1
    said = " ".join(result.stderr.split())
    assert f"--port {port}: cannot be listened to: Address already in use; stop what listens there" in said
    assert '"event": "serving"' not in said


@pytest.mark.parametrize(
    ("base", "reason"),
    [
        ("no-path", "expected NAME=PATH"),
        ("a b=/x", "is no model name"),
        ("small=/nowhere", "no such folder or .gguf file"),
    ],
)
def test_the_command_does_not_start_with_a_base_that_is_not_there(
    tmp_path: Path, base: str, reason: str
) -> None:
    result = CliRunner().invoke(cli, ["serve", "--folder", str(tmp_path), "--base", base])
    assert result.exit_code == 1
    assert reason in " ".join(result.stderr.split())


def test_a_second_server_of_a_folder_does_not_start(app: FastAPI, settings: ServiceSettings) -> None:
    with (
        _local(app),
        pytest.raises(EngineError, match="is at work there"),
        _local(create_app(settings)),
    ):
        pass


def test_a_database_of_another_program_or_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "service.sqlite"
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(ConfigurationError, match="no other program's file"):
        Database(path)
    path.unlink()
    with sqlite3.connect(path) as other:
        other.execute("PRAGMA user_version = 99")
    other.close()
    with pytest.raises(ConfigurationError, match="has version 99"):
        Database(path)


@pytest.mark.parametrize("value", ["no-number", "0", "10001", "1e3", "-1", "9" * 30])
def test_a_page_of_a_wrong_size_is_refused_with_the_field(app: FastAPI, value: str) -> None:
    reply = _local(app).get("/v1/files", params={"limit": value})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "limit")
    require_described("GET", "/v1/files", 400, reply.json())


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b"\xff", b'{"model": NaN}', b"[" * 400, b'{"\\ud800": "\\ud800"}',
        b'{"model": "tiny", "training_file": "\\ud800\\u0000"}', b'{"model": {"a": 1}, "training_file": []}',
    ],
)  # fmt: skip
def test_any_body_that_is_no_request_is_a_client_error_of_openais_shape(app: FastAPI, body: bytes) -> None:
    client = _local(app)
    for path in ("/v1/fine_tuning/jobs", "/v1/uploads", "/v1/uploads/upload_x/complete"):
        reply = client.post(path, content=body, headers={"content-type": "application/json"})
        assert 400 <= reply.status_code < 500, reply.text
        require_described("POST", path, reply.status_code, reply.json())


def test_unknown_paths_and_methods_are_errors_of_openais_shape(app: FastAPI) -> None:
    client = _local(app)
    for reply in (client.get("/v1/nothing"), client.put("/v1/files"), client.get("/v1/models/%2e%2e%2fx")):
        assert reply.status_code in (404, 405)
        require_described("GET", "/", reply.status_code, reply.json())
        assert reply.headers["x-request-id"].startswith("req_")


def test_a_failure_of_the_server_tells_neither_client_nor_log_its_text(
    app: FastAPI, caplog: pytest.LogCaptureFixture
) -> None:
    @app.get("/fails")
    def fails() -> None:
        raise ValueError("a customer's secret")

    with caplog.at_level(logging.INFO):
        reply = _local(app).get("/fails?also=secret")
    assert reply.status_code == 500
    request_id = reply.headers["x-request-id"]
    assert request_id in reply.json()["error"]["message"]
    assert "secret" not in reply.text
    own = [r.getMessage() for r in caplog.records if r.name.startswith("llama_index_finetune_structured")]
    failure, request = (json.loads(message) for message in own)
    assert (failure["error"], failure["where"]) == ("ValueError", request_id)
    assert (request["status"], request["route"], request["request_id"]) == (500, "/fails", request_id)
    assert "secret" not in "".join(own)


def test_a_large_body_is_refused_before_it_is_read(app: FastAPI) -> None:
    client = _local(app)
    assert client.post("/v1/uploads", content=b"x" * 1001).status_code == 413

    reply = client.post("/v1/uploads", content=iter([b"x" * 500] * 3))  # says no length
    assert reply.status_code == 413
    require_described("POST", "/v1/uploads", 413, reply.json())


def test_readiness_and_figures(service: Running, trained: Trained) -> None:
    assert httpx.get(f"{service.base}/readyz").json() == {"status": "ready"}
    text = httpx.get(
        f"{service.base}/metrics", headers={"authorization": f"Bearer {trained.client.api_key}"}
    ).text
    assert 'finetune_structured_jobs{status="succeeded"}' in text
    assert 'route="/v1/fine_tuning/jobs/{job_id}"' in text
    assert trained.job.id not in text


def test_the_sdk_reads_the_field_and_the_request_id_of_an_error(service: Running) -> None:
    client = sdk(service.base, service.add_key())
    with pytest.raises(openai.NotFoundError) as error:
        client.fine_tuning.jobs.create(model="none", training_file="file-x")
    assert error.value.param == "model"
    assert (error.value.request_id or "").startswith("req_")
