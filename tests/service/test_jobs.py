"""Fine-tuning jobs, really trained, by the unmodified SDK: states, events, results, and what is refused."""

from __future__ import annotations

import csv
import io
import re
from typing import Any

import httpx
import openai
import pytest

from llama_index_finetune_structured import LoraLLM
from tests.service.conftest import Running, Trained
from tests.service.serving import figures, job_after, pairs, rows, steps_of, wait_for


def test_a_job_trains_a_model_with_the_hyperparameters_that_it_names(trained: Trained) -> None:
    job = trained.job
    assert (job.status, job.error, job.seed) == ("succeeded", None, 7)
    assert job.metadata == {"run": "a b", "it's": "ü"}
    assert job.fine_tuned_model == f"ft:tiny:local:Films-1:{job.id[-12:]}"
    assert job.method.supervised.hyperparameters.n_epochs == 2
    assert job.hyperparameters.batch_size == 2
    assert job.trained_tokens > 0
    assert job.finished_at >= job.created_at


def test_every_step_is_an_event_with_its_loss_and_a_row_of_the_result_file(trained: Trained) -> None:
    client, job = trained.client, trained.job
    events = list(reversed(list(client.fine_tuning.jobs.list_events(job.id, limit=5))))
    assert [event.message for event in events if event.level == "info"][:4] == [
        f"Created fine-tuning job: {job.id}",
        "Validating training file: räume.jsonl",
        "Validating validation file: held-out.jsonl",
        "Fine-tuning job started",
    ]
    assert events[-1].message == "The job has successfully completed"
    metrics: Any = [event.data for event in events if event.type == "metrics"]
    assert [entry["step"] for entry in metrics] == list(range(1, 13))
    (file,) = client.files.list(purpose="fine-tune-results")
    assert job.result_files == [file.id]
    table = list(csv.DictReader(io.StringIO(client.files.content(file.id).text)))
    assert [float(row["train_loss"]) for row in table] == [entry["train_loss"] for entry in metrics]
    assert [row["step"] for row in table if row["full_valid_loss"]] == ["6", "12"]
    held_out = {
        str(entry["step"]): entry["full_valid_loss"] for entry in metrics if "full_valid_loss" in entry
    }
    assert held_out == {row["step"]: float(row["full_valid_loss"]) for row in table if row["full_valid_loss"]}


def test_who_reads_events_as_they_come_reads_each_held_out_loss_once(trained: Trained) -> None:
    events = list(reversed(list(trained.client.fine_tuning.jobs.list_events(trained.job.id, limit=5))))
    read: list[tuple[str, Any]] = [(event.type or "", event.data or {}) for event in events]
    steps = {data["step"]: data for kind, data in read if kind == "metrics"}
    told = [data for kind, data in read if kind == "message" and "full_valid_loss" in data]
    assert [data["step"] for data in told] == [6, 12]
    assert [data["full_valid_loss"] for data in told] == [steps[n]["full_valid_loss"] for n in (6, 12)]
    said = [event.message for event in events]
    assert said.index(f"Step 6/12: held-out loss={told[0]['full_valid_loss']:.4f}") > said.index(
        f"Step 6/12: training loss={steps[6]['train_loss']:.4f}"
    )


def test_the_checkpoint_of_a_job_is_the_model_that_is_listed_and_answers(
    service: Running, trained: Trained
) -> None:
    (checkpoint,) = trained.client.fine_tuning.jobs.checkpoints.list(trained.job.id)
    name = trained.job.fine_tuned_model
    assert checkpoint.fine_tuned_model_checkpoint == name
    assert checkpoint.metrics.full_valid_loss is not None
    assert [model.id for model in trained.client.models.list()] == ["tiny", name]
    assert trained.client.models.retrieve(name).id == name
    run = service.settings.runs_folder / trained.job.id
    assert LoraLLM.from_adapter(run / "adapter", max_new_tokens=2).complete("Film 1").text is not None
    assert not (run / "checkpoints").exists()


def test_events_are_streamed_until_the_job_has_ended(trained: Trained) -> None:
    url = f"{trained.client.base_url}fine_tuning/jobs/{trained.job.id}/events?stream=true"
    key = {"authorization": f"Bearer {trained.client.api_key}"}
    with httpx.stream("GET", url, headers=key, timeout=60) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in reply.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "data: [DONE]"
    assert "Created fine-tuning job" in lines[0]
    assert "successfully completed" in lines[-2]


def test_jobs_are_found_by_their_metadata(trained: Trained) -> None:
    jobs = trained.client.fine_tuning.jobs
    for metadata, found in (
        ({"run": "a b"}, [trained.job.id]),
        ({"it's": "ü", "run": "a b"}, [trained.job.id]),
        ({"run": "b"}, []),
        ({'"]': "x"}, []),
    ):
        assert [job.id for job in jobs.list(metadata=metadata)] == found
    url = f"{trained.client.base_url}fine_tuning/jobs?metadata=null"
    key = {"authorization": f"Bearer {trained.client.api_key}"}
    assert trained.job.id not in [job["id"] for job in httpx.get(url, headers=key).json()["data"]]


@pytest.mark.usefixtures("worker")
def test_a_job_goes_on_from_a_tuned_model_with_preferences(service: Running, trained: Trained) -> None:
    client = trained.client
    content = pairs(4)
    held_out = re.sub(rb'"x(\d)"', rb'"{\\"name\\": \\"x\1\\"}"', pairs(2))  # an answer that can be scored
    files = [
        client.files.create(file=(f"{name}.jsonl", part), purpose="fine-tune")
        for name, part in (("pairs", content), ("held-out", held_out))
    ]
    asked: dict[str, Any] = {"model": trained.job.fine_tuned_model, "training_file": files[0].id}
    job = client.fine_tuning.jobs.create(
        **asked,
        validation_file=files[1].id,
        method={"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.2, "n_epochs": 1}}},
    )
    done = job_after(client, job.id, "succeeded")
    assert done.model == trained.job.fine_tuned_model
    assert done.fine_tuned_model.startswith("ft:tiny:local::")
    assert (done.method.type, done.method.dpo.hyperparameters.beta) == ("dpo", 0.2)
    events = client.fine_tuning.jobs.list_events(job.id)
    first = next(e for e in events if e.type == "metrics" and dict(e.data)["step"] == 1)  # type: ignore[call-overload]
    assert dict(first.data)["train_loss"] == pytest.approx(0.6931, abs=1e-3)  # type: ignore[call-overload]
    reply = client.chat.completions.create(
        model=done.fine_tuned_model, messages=[{"role": "user", "content": "Film 1"}], max_tokens=2
    )
    assert reply.choices[0].message.content is not None
    card = f"{client.base_url}fine_tuning/jobs/{job.id}/scorecard"
    key = {"authorization": f"Bearer {client.api_key}"}
    httpx.post(card, headers=key)
    wait_for(lambda: httpx.get(card, headers=key).json()["status"] != "running")
    scored = httpx.get(card, headers=key).json()
    assert (scored["status"], scored.get("rows")) == ("succeeded", 2), scored["error"]
    with pytest.raises(openai.NotFoundError, match="or a model that you tuned"):
        service.client().fine_tuning.jobs.create(**asked)


@pytest.mark.usefixtures("worker")
def test_lines_that_hold_no_preference_end_the_job_with_each_of_them(client: openai.OpenAI) -> None:
    content = pairs(2) + rows(1) + b"[]\n"
    file = client.files.create(file=("Paare.jsonl", content), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(model="tiny", training_file=file.id, method={"type": "dpo"})
    error = job_after(client, job.id, "failed").error
    assert (
        "Paare.jsonl:3: error [not_a_preference] input: expected an object with 'messages'" in error.message
    )
    assert "Paare.jsonl:4: error [not_a_preference] expected a JSON object, found list" in error.message


@pytest.mark.usefixtures("worker")
def test_a_file_with_wrong_lines_ends_the_job_with_each_of_them(client: openai.OpenAI) -> None:
    content = rows(3) + b'{"messages": []}\nnot json\n'
    file = client.files.create(file=("mit Fehlern.jsonl", content), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(model="tiny", training_file=file.id)
    error = job_after(client, job.id, "failed").error
    assert (error.code, error.param) == ("invalid_training_file", "training_file")
    assert "mit Fehlern.jsonl:4: error" in error.message
    assert "mit Fehlern.jsonl:5: error [not_json]" in error.message
    assert "/" not in error.message.replace("and/or", ""), "a path of the server"
    levels = [event.level for event in client.fine_tuning.jobs.list_events(job.id)]
    assert levels[0] == "error"


DPO: dict[str, Any] = {"type": "dpo"}
METHOD = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 0}}}


@pytest.mark.parametrize(
    ("changes", "status", "param"),
    [
        ({"model": "gpt-4o"}, 404, "model"),
        ({"training_file": "file-of-nobody"}, 404, "training_file"),
        ({"validation_file": "file-of-nobody"}, 404, "validation_file"),
        ({"method": DPO | {"dpo": {"hyperparameters": {"beta": 3}}}}, 400, "method.dpo.hyperparameters.beta"),
        ({"method": {"type": "reinforcement"}}, 400, "method.type"),
        ({"method": DPO | {"supervised": {}}}, 400, "method"),
        ({"method": METHOD}, 400, "method.supervised.hyperparameters.n_epochs"),
        ({"hyperparameters": {"n_epochs": "many"}}, 400, "hyperparameters.n_epochs"),
        ({"hyperparameters": {"batch_size": True}}, 400, "hyperparameters.batch_size"),
        (
            {"hyperparameters": {"learning_rate_multiplier": 0}},
            400,
            "hyperparameters.learning_rate_multiplier",
        ),
        ({"suffix": "a:b"}, 400, "suffix"),
        ({"seed": -1}, 400, "seed"),
        ({"metadata": {"k": 1}}, 400, "metadata.k"),
        ({"metadata": {str(n): "v" for n in range(17)}}, 400, "metadata"),
        ({"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]}, 400, "integrations"),
        ({"extra_body": {"no_field": 1}}, 400, "no_field"),
        ({"extra_body": {"training_file": None}}, 400, "training_file"),
    ],
)
def test_what_cannot_be_trained_is_refused_with_the_field_that_is_wrong(
    client: openai.OpenAI, changes: dict[str, Any], status: int, param: str
) -> None:
    file = client.files.create(file=("a.jsonl", rows(2)), purpose="fine-tune")
    with pytest.raises(openai.APIStatusError) as error:
        client.fine_tuning.jobs.create(**{"model": "tiny", "training_file": file.id, **changes})
    assert (error.value.status_code, error.value.param) == (status, param)
    assert list(client.fine_tuning.jobs.list()) == []


def test_a_setting_of_another_type_is_told_of_auto_too(client: openai.OpenAI) -> None:
    file = client.files.create(file=("a.jsonl", rows(2)), purpose="fine-tune")
    asked: Any = {"n_epochs": "lots"}
    with pytest.raises(openai.BadRequestError) as error:
        client.fine_tuning.jobs.create(model="tiny", training_file=file.id, hyperparameters=asked)
    assert (
        "Invalid hyperparameters.n_epochs: Input should be a valid integer, or 'auto'" in error.value.message
    )


def test_the_place_where_a_body_is_no_json_is_told(service: Running, client: openai.OpenAI) -> None:
    reply = httpx.post(
        f"{service.base}/v1/fine_tuning/jobs",
        content=b'{"model": "tiny" "training_file": "a"}',
        headers={"authorization": f"Bearer {client.api_key}", "content-type": "application/json"},
    )
    assert reply.status_code == 400
    assert (
        reply.json()["error"]["message"] == "Invalid body: no JSON at character 17: Expecting ',' delimiter"
    )


@pytest.mark.parametrize("content", [b'{"model": "tiny", "training_file": "a"}', b"[1]"])
def test_a_body_without_its_header_or_that_is_no_object_is_told_both(
    service: Running, client: openai.OpenAI, content: bytes
) -> None:
    kind = "application/x-www-form-urlencoded" if content.startswith(b"{") else "application/json"
    headers = {"authorization": f"Bearer {client.api_key}", "content-type": kind}
    reply = httpx.post(f"{service.base}/v1/fine_tuning/jobs", content=content, headers=headers)
    assert reply.status_code == 400
    message = reply.json()["error"]["message"]
    assert (
        message == "Invalid body: a JSON object is expected, with the header 'Content-Type: application/json'"
    )


def test_a_file_for_another_purpose_is_no_training_file(client: openai.OpenAI) -> None:
    file = client.files.create(file=("a.jsonl", rows(2)), purpose="user_data")
    with pytest.raises(openai.BadRequestError, match="expected the purpose 'fine-tune'"):
        client.fine_tuning.jobs.create(model="tiny", training_file=file.id)


@pytest.mark.usefixtures("worker")
def test_a_job_stops_within_a_step_goes_on_there_and_ends_when_it_is_cancelled(
    service: Running, client: openai.OpenAI
) -> None:
    jobs = client.fine_tuning.jobs
    file = client.files.create(file=("a.jsonl", rows(40)), purpose="fine-tune")
    job = jobs.create(model="tiny", training_file=file.id, hyperparameters={"n_epochs": 50})
    client.files.delete(file.id)  # the job keeps what it needs
    waiting = jobs.create(model="tiny", training_file=_other(client))
    job_after(client, job.id, "running")
    wait_for(lambda: steps_of(client, job.id))
    assert str(jobs.pause(job.id).status) == "paused"
    most = len(steps_of(client, job.id)) + 1  # with the step at work, which is written down
    job_after(client, waiting.id, "running", "succeeded")  # the worker has left the paused one
    steps = steps_of(client, job.id)
    assert len(steps) <= most
    with pytest.raises(openai.BadRequestError, match="The job is paused"):
        jobs.pause(job.id)
    assert jobs.resume(job.id).status == "queued"
    wait_for(lambda: len(steps_of(client, job.id)) > len(steps))
    gone_on = steps_of(client, job.id)
    assert gone_on == list(range(1, len(gone_on) + 1))
    cancelled = jobs.cancel(job.id)
    assert (cancelled.status, cancelled.finished_at is not None) == ("cancelled", True)
    with pytest.raises(openai.BadRequestError, match="The job is cancelled"):
        jobs.resume(job.id)
    job_after(client, waiting.id, "succeeded")
    steps = steps_of(client, job.id)
    assert len(steps) < 1000
    assert figures(
        httpx.get(f"{service.base}/metrics", headers=_key(client)).text, "finetune_structured_jobs"
    )


def _other(client: openai.OpenAI) -> str:
    return client.files.create(file=("b.jsonl", rows(4)), purpose="fine-tune").id


def _key(client: openai.OpenAI) -> dict[str, str]:
    return {"authorization": f"Bearer {client.api_key}"}


@pytest.mark.usefixtures("worker")
def test_a_deleted_model_is_gone_with_its_weights(service: Running, client: openai.OpenAI) -> None:
    with pytest.raises(openai.PermissionDeniedError):
        client.models.delete("tiny")
    job = client.fine_tuning.jobs.create(
        model="tiny",
        training_file=_other(client),
        hyperparameters={"n_epochs": 1, "learning_rate_multiplier": 0.5},
    )
    done = job_after(client, job.id, "succeeded")
    assert done.hyperparameters.learning_rate_multiplier == 0.5
    name = done.fine_tuned_model
    assert client.models.delete(name).deleted
    assert name not in [model.id for model in client.models.list()]
    assert not (service.settings.runs_folder / job.id).exists()
    with pytest.raises(openai.NotFoundError):
        client.models.delete(name)
