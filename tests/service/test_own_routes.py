"""What this server has beside OpenAI's protocol: keys, checks of files, scorecards."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from llama_index_finetune_structured import FinetuneDataset
from tests.service.conftest import Running, Trained
from tests.service.serving import job_after, pairs, rows, wait_for


def _client(service: Running, key: str) -> httpx.Client:
    return httpx.Client(base_url=f"{service.base}/v1", headers={"authorization": f"Bearer {key}"}, timeout=60)


def test_keys_are_made_listed_and_revoked_by_a_key_for_keys(service: Running) -> None:
    admin = _client(service, service.add_key(scopes=["admin"]))
    body = {"name": "Zoë", "scopes": ["chat"], "max_stored_bytes": 5}
    made = admin.post("/keys", json=body).json()
    assert (made["name"], made["scopes"], made["max_stored_bytes"], made["revoked"]) == (
        "Zoë",
        ["chat"],
        5,
        False,
    )
    with _client(service, made["key"]) as own:
        assert own.get("/keys/current").json()["id"] == made["id"]
        assert own.get("/keys").status_code == own.post("/keys", json=body).status_code == 403
        listed = admin.get("/keys").json()["data"]
        assert made["key"] not in json.dumps(listed)
        assert [key["revoked"] for key in listed if key["id"] == made["id"]] == [False]
        assert admin.delete(f"/keys/{made['id']}").json()["deleted"]
        assert own.get("/models").status_code == 401
    assert admin.get("/files").status_code == 403, "a key for keys is for nothing else"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"name": ""}, "name"),
        ({"name": "  "}, "name"),
        ({"name": "a", "scopes": []}, "scopes"),
        ({"name": "a", "scopes": ["root"]}, "scopes.0"),
        ({"name": "a", "max_waiting_jobs": 0}, "max_waiting_jobs"),
        ({"name": "a", "max_stored_bytes": 2**80}, "max_stored_bytes"),
        ({"name": "key 0"}, "name"),
        ({"name": "a", "key": "mine"}, "key"),
    ],
)
def test_a_key_that_cannot_be_made_is_refused_with_the_field(
    service: Running, body: dict[str, Any], param: str
) -> None:
    reply = _client(service, service.add_key(scopes=["admin"])).post("/keys", json=body)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)


def test_a_key_cannot_revoke_itself_or_what_is_not_there(service: Running) -> None:
    admin = _client(service, service.add_key(scopes=["admin"]))
    own = admin.get("/keys/current").json()["id"]
    assert admin.delete(f"/keys/{own}").json()["error"]["code"] == "own_key"
    assert admin.delete("/keys/key_none").status_code == 404


@pytest.mark.usefixtures("worker")
def test_a_file_is_checked_as_its_job_would_and_no_path_is_told(service: Running) -> None:
    key = service.add_key()
    content = rows(11) + rows(1) + b'{"messages": [{"role": "user"}]}\n'
    with _client(service, key) as client:
        form = {"purpose": "fine-tune"}
        file = client.post("/files", data=form, files={"file": ("räume.jsonl", content)}).json()
        asked = {"model": "tiny", "training_file": file["id"]}
        found = client.post("/fine_tuning/checks", json=asked).json()
        assert (found["ok"], found["lines"], found["good_lines"]) == (False, 13, 12)
        assert (found["errors"], found["warnings"]) == (1, 1)
        assert [problem["line"] for problem in found["problems"]] == [13, 12]
        assert found["problems"][1]["code"] == "duplicate"
        assert 0 < found["trained_tokens"] < found["tokens"]
        assert str(service.settings.folder) not in json.dumps(found)
        wrong = [{**asked, "model": "other"}, {**asked, "training_file": "file-none"}]
        assert [client.post("/fine_tuning/checks", json=body).status_code for body in wrong] == [404, 404]
    with _client(service, service.add_key()) as other:
        assert other.post("/fine_tuning/checks", json=asked).status_code == 404


@pytest.mark.usefixtures("worker")
def test_a_check_says_which_method_a_file_is_for_and_so_does_the_job(
    service: Running, trained: Trained
) -> None:
    wrong = pairs(4) + b"\n" + rows(1) + pairs(4)
    contents = {"answers": rows(), "pairs": pairs(4), "wrong": wrong}
    with _client(service, trained.client.api_key) as client:
        files = {
            name: client.post(
                "/files", data={"purpose": "fine-tune"}, files={"file": (name, content)}
            ).json()["id"]
            for name, content in contents.items()
        }

        def found(name: str, method: str, model: str = "tiny") -> dict[str, Any]:
            asked = {"model": model, "training_file": files[name], "method": method}
            report: dict[str, Any] = client.post("/fine_tuning/checks", json=asked).json()
            return report

        def ended(path: str) -> bool:
            return client.get(path).json()["status"] == "failed"

        for name, method, other in (("pairs", "supervised", "dpo"), ("answers", "dpo", "supervised")):
            report = found(name, method)
            (problem,) = report["problems"]
            assert (report["ok"], report["good_lines"], problem["code"]) == (False, 0, "wrong_method")
            assert f"the method must be {other!r}" in problem["message"]
            assert found(name, other)["ok"]
            body = {"model": "tiny", "training_file": files[name], "method": {"type": method}}
            job = client.post("/fine_tuning/jobs", json=body).json()["id"]
            path = f"/fine_tuning/jobs/{job}"
            wait_for(partial(ended, path))
            failed = client.get(path).json()["error"]
            assert f"the method must be {other!r}" in failed["message"]
        report = found("wrong", "dpo", trained.job.fine_tuned_model)
        assert [(problem["code"], problem["line"]) for problem in report["problems"]] == [
            ("not_a_preference", 6)
        ]
        assert (report["lines"], report["good_lines"]) == (9, 8)


def test_the_scorecard_of_a_job_has_both_models_on_its_held_out_rows(
    service: Running, trained: Trained, tmp_path: Path
) -> None:
    path = f"/fine_tuning/jobs/{trained.job.id}/scorecard"
    with _client(service, service.add_key()) as other:
        assert [other.get(path).status_code, other.post(path).status_code] == [404, 404]
        assert other.get(f"{path}/report").status_code == 404
    with _client(service, trained.client.api_key) as client:
        assert client.post(path).json()["status"] in ("running", "succeeded")
        wait_for(lambda: client.get(path).json()["status"] != "running")
        card = client.get(path).json()
        assert (card["status"], card["rows"], card["error"]) == ("succeeded", 2, None)
        assert [system["model"] for system in card["systems"]] == ["tiny", trained.job.fine_tuned_model]
        assert all(0 <= system["field_score"]["rate"] <= 1 for system in card["systems"])
        report = client.get(f"{path}/report")
        assert report.headers["content-disposition"].startswith("attachment")
        assert trained.job.fine_tuned_model in report.text
        assert str(service.settings.folder) not in report.text + json.dumps(card)


def test_rows_that_name_a_class_of_their_maker_are_scored_without_a_warning(
    service: Running, worker: None, caplog: pytest.LogCaptureFixture
) -> None:
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {"name": {"type": "string"}},
        "required": ["name"],
    }
    data = FinetuneDataset.from_pairs([(f"Film {n}", {"name": f"x{n}"}) for n in range(4)], schema=schema)
    lines = [row.model_copy(update={"answer_class": "their.app:Film"}).model_dump_json() for row in data]
    client = service.client()
    file = client.files.create(file=("a.jsonl", "\n".join(lines).encode()), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(
        model="tiny", training_file=file.id, validation_file=file.id, hyperparameters={"n_epochs": 1}
    )
    job_after(client, job.id, "succeeded")
    path = f"/fine_tuning/jobs/{job.id}/scorecard"
    with caplog.at_level("WARNING"), _client(service, client.api_key) as own:
        own.post(path)
        wait_for(lambda: own.get(path).json()["status"] != "running")
        assert own.get(path).json()["status"] == "succeeded"
    assert [record.getMessage() for record in caplog.records if "judged" in record.getMessage()] == []


def test_of_a_deleted_held_out_file_it_is_said_that_there_can_be_no_scorecard(
    service: Running, worker: None
) -> None:
    client = service.client()
    file, held_out = (client.files.create(file=("a.jsonl", rows(2)), purpose="fine-tune") for _ in range(2))
    job = client.fine_tuning.jobs.create(
        model="tiny", training_file=file.id, validation_file=held_out.id, hyperparameters={"n_epochs": 1}
    )
    done = job_after(client, job.id, "succeeded")
    assert done.hyperparameters.learning_rate_multiplier == 1, "what 'auto' has become"
    client.files.delete(held_out.id)
    with _client(service, client.api_key) as own:
        error = own.post(f"/fine_tuning/jobs/{job.id}/scorecard").json()["error"]
    assert (error["code"], error["param"]) == ("file_not_found", "validation_file")
    assert "The held-out file of this job was deleted" in error["message"]


def test_without_a_held_out_file_or_an_end_there_is_no_scorecard(service: Running) -> None:
    with _client(service, service.add_key()) as client:
        form = {"purpose": "fine-tune"}
        file = client.post("/files", data=form, files={"file": ("a.jsonl", b"{}")}).json()
        body = {"model": "tiny", "training_file": file["id"]}
        job = client.post("/fine_tuning/jobs", json=body).json()["id"]
        reply = client.post(f"/fine_tuning/jobs/{job}/scorecard").json()
        assert reply["error"]["code"] == "invalid_job_status"
        assert client.get(f"/fine_tuning/jobs/{job}/scorecard").json()["status"] == "none"
        client.post(f"/fine_tuning/jobs/{job}/cancel")
