"""Kill a process with SIGKILL at each of its durable steps, one after the other: a script that prints what came of it.

Each operation of the service is done in a forked child that is killed before its n-th change of a file or of the
database, for every n until it ends by itself. After each kill, the folder is opened as the next server does, and what
is there is checked. Children are forked from a process that has imported what they need and computed nothing.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fastapi.testclient
import sqlalchemy
from fastapi.testclient import TestClient
from sqlalchemy import insert, select
from sqlalchemy.engine import Engine

from llama_index_finetune_structured import LoraSettings
from llama_index_finetune_structured.service.app import create_app
from llama_index_finetune_structured.service.blobs import Blobs
from llama_index_finetune_structured.service.database import Database, files, jobs, models, parts
from llama_index_finetune_structured.service.runs import remove_runs
from llama_index_finetune_structured.service.settings import ServiceSettings
from llama_index_finetune_structured.service.worker import Worker
from tests.service.serving import rows, stored

_STEPS = ("fsync", "replace", "rename", "unlink", "rmdir", "mkdir")
_MODEL, _JOB = "ft:tiny:local::000000000001", "ftjob-000000000000000000000001"


def kill_before(step: int) -> None:
    """Have this process killed before its change number ``step``, from 0."""
    left = step

    def count() -> None:
        nonlocal left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

    def counted(own: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            count()
            return own(*args, **kwargs)

        return call

    for name in _STEPS:
        setattr(os, name, counted(getattr(os, name)))
    sqlalchemy.event.listen(Engine, "commit", lambda _: count())


def in_child(work: Callable[[], object]) -> bool:
    """Do the work in a child; whether it ended by itself. Raises RuntimeError where it failed."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status > 0:
        raise RuntimeError("the child failed")
    return status == 0


@contextmanager
def client_of(settings: ServiceSettings) -> Iterator[TestClient]:
    """A client of a server that starts and ends here."""
    with TestClient(create_app(settings), base_url="http://127.0.0.1", client=("127.0.0.1", 1)) as client:
        yield client


def call(client: TestClient, method: str, path: str, **body: Any) -> Any:
    reply = client.request(method, f"/v1{path}", **body)
    assert reply.status_code == 200, reply.text
    return reply.json()


def send_file(client: TestClient, content: bytes) -> str:
    form = {"purpose": "fine-tune"}
    return str(call(client, "POST", "/files", data=form, files={"file": ("a.jsonl", content)})["id"])


class Operation:
    """What is done, and what must be there after it was interrupted, and after it was done again."""

    def __init__(self, settings: ServiceSettings) -> None:
        self.settings = settings
        self.file = ""  # the id of a file that is there before

    def prepare(self, client: TestClient) -> None:
        """What is there before."""

    def work(self, client: TestClient) -> None:
        raise NotImplementedError

    def recover(self) -> None:
        """What a worker does after a kill, where no server is open: connections to SQLite survive no fork."""

    def check(self, client: TestClient) -> None:
        """After a kill: all of the operation has happened, or nothing; then it can be done again."""
        raise NotImplementedError


class SendFile(Operation):
    content = rows(5)

    def work(self, client: TestClient) -> None:
        send_file(client, self.content)

    def check(self, client: TestClient) -> None:
        for file in call(client, "GET", "/files")["data"]:
            assert client.get(f"/v1/files/{file['id']}/content").content == self.content
            call(client, "DELETE", f"/files/{file['id']}")
        self.work(client)
        for file in call(client, "GET", "/files")["data"]:
            call(client, "DELETE", f"/files/{file['id']}")


class SendParts(Operation):
    halves = (rows(4), rows(3))

    def work(self, client: TestClient) -> None:
        size = sum(map(len, self.halves))
        body = {"filename": "b.jsonl", "purpose": "fine-tune", "bytes": size, "mime_type": "text/jsonl"}
        upload = call(client, "POST", "/uploads", json=body)["id"]
        ids = [
            call(client, "POST", f"/uploads/{upload}/parts", files={"data": half})["id"]
            for half in self.halves
        ]
        call(client, "POST", f"/uploads/{upload}/complete", json={"part_ids": ids})

    def check(self, client: TestClient) -> None:
        database = Database(self.settings.database_path)
        with database.read() as connection:
            pending = connection.scalars(select(parts.c.upload_id).distinct()).all()
        database.close()
        for file in call(client, "GET", "/files")["data"]:
            assert client.get(f"/v1/files/{file['id']}/content").content == b"".join(self.halves)
            call(client, "DELETE", f"/files/{file['id']}")
        for upload in pending:
            call(client, "POST", f"/uploads/{upload}/cancel")


class QueueJob(Operation):
    def prepare(self, client: TestClient) -> None:
        self.file = send_file(client, rows(6))

    def work(self, client: TestClient) -> None:
        body = {"model": "tiny", "training_file": self.file}
        job = call(client, "POST", "/fine_tuning/jobs", json=body)["id"]
        for action in ("pause", "resume", "cancel"):
            call(client, "POST", f"/fine_tuning/jobs/{job}/{action}")

    def check(self, client: TestClient) -> None:
        told = {"queued": "Created", "paused": "paused", "cancelled": "cancelled"}
        for job in call(client, "GET", "/fine_tuning/jobs")["data"]:
            events = call(client, "GET", f"/fine_tuning/jobs/{job['id']}/events")["data"]
            assert told[job["status"]] in events[0]["message"] or "resumed" in events[0]["message"]
            assert (job["finished_at"] is not None) == (job["status"] == "cancelled")
            if job["status"] != "cancelled":
                call(client, "POST", f"/fine_tuning/jobs/{job['id']}/cancel")
        assert client.get(f"/v1/files/{self.file}/content").content == rows(6)


class DeleteFile(Operation):
    def prepare(self, client: TestClient) -> None:
        self.file = send_file(client, rows(7))

    def work(self, client: TestClient) -> None:
        call(client, "DELETE", f"/files/{self.file}")

    def check(self, client: TestClient) -> None:
        reply = client.get(f"/v1/files/{self.file}/content")
        assert reply.status_code == 404 or reply.content == rows(7)
        client.delete(f"/v1/files/{self.file}")
        self.prepare(client)


class DeleteModel(Operation):
    def prepare(self, client: TestClient) -> None:
        adapter = self.settings.runs_folder / _JOB / "adapter"
        adapter.mkdir(parents=True, exist_ok=True)
        (adapter / "weights").write_bytes(b"1")
        database = Database(self.settings.database_path)
        with database.write() as connection:
            row = {"id": _JOB, "owner": "local", "created_at": 1, "model": "tiny", "status": "succeeded"}
            file = {
                "training_file": "f",
                "training_sha256": "0" * 64,
                "training_name": "a",
                "hyperparameters": {},
            }
            if connection.execute(select(jobs).where(jobs.c.id == _JOB)).one_or_none() is None:
                connection.execute(insert(jobs).values({**row, **file, "seed": 1}))
            tuned = {"id": _MODEL, "owner": "local", "created_at": 1, "job_id": _JOB, "base": "tiny"}
            connection.execute(insert(models).values({**tuned, "base_path": "tiny"}))
        database.close()

    def work(self, client: TestClient) -> None:
        call(client, "DELETE", f"/models/{_MODEL}")

    def check(self, client: TestClient) -> None:
        database = Database(self.settings.database_path)
        remove_runs(self.settings, database)  # which the next server does at its start
        database.close()
        is_listed = _MODEL in [model["id"] for model in call(client, "GET", "/models")["data"]]
        assert (self.settings.runs_folder / _JOB / "adapter" / "weights").exists() == is_listed
        assert (self.settings.runs_folder / _JOB).exists() == is_listed
        if is_listed:
            self.work(client)
        self.prepare(client)


class Train(Operation):
    """From the queue to the model, by a worker."""

    def prepare(self, client: TestClient) -> None:
        self.file = send_file(client, rows(4))
        self._queue(client)

    def _queue(self, client: TestClient) -> None:
        body = {"model": "tiny", "training_file": self.file, "seed": 3, "hyperparameters": {"n_epochs": 1}}
        call(client, "POST", "/fine_tuning/jobs", json=body)

    def work(self, client: TestClient) -> None:
        self._train()

    def _train(self) -> None:
        worker = Worker(self.settings, "0", threading.Event())
        while worker.work():
            pass

    def recover(self) -> None:
        assert in_child(self._train)

    def check(self, client: TestClient) -> None:
        (job, *older) = call(client, "GET", "/fine_tuning/jobs?limit=1000")["data"]
        assert job["status"] == "succeeded", job
        events = call(client, "GET", f"/fine_tuning/jobs/{job['id']}/events?limit=1000")["data"]
        assert [event["data"]["step"] for event in reversed(events) if event["type"] == "metrics"] == [1, 2]
        assert len(call(client, "GET", "/files?purpose=fine-tune-results")["data"]) == 1 + len(older)
        names = [model["id"] for model in call(client, "GET", "/models")["data"]]
        assert names == ["tiny", *(each["fine_tuned_model"] for each in reversed([job, *older]))]
        weights = {
            (self.settings.runs_folder / each["id"] / "adapter/adapter_model.safetensors").read_bytes()
            for each in (job, *older)
        }
        assert len(weights) == 1
        self._queue(client)


def killed_at_every_step(operation: Operation) -> int:
    """The number of steps that the operation was killed at, each checked.

    This process never opens the database: a child that is forked later would count its locks as its own.
    """
    settings, step = operation.settings, 0
    note = settings.folder.with_suffix(".prepared")

    def prepared() -> None:
        with client_of(settings) as client:
            operation.prepare(client)
        note.write_text(operation.file)

    def interrupted() -> None:
        with client_of(settings) as client:
            kill_before(step)
            operation.work(client)
            os._exit(0)  # the server's end is no part of the operation

    def checked() -> None:
        operation.recover()
        with client_of(settings) as client:
            operation.check(client)
        note.write_text(operation.file)
        _require_only_what_is_named(settings)

    assert in_child(prepared)
    while True:
        operation.file = note.read_text()
        if in_child(interrupted):
            return step
        step += 1
        assert in_child(checked)


def _require_only_what_is_named(settings: ServiceSettings) -> None:
    database = Database(settings.database_path)
    Blobs(settings.blobs_folder, database).clean_up()
    with database.read() as connection:
        named = {*connection.scalars(select(files.c.sha256)), *connection.scalars(select(parts.c.sha256))}
        needed = select(jobs.c.training_sha256).where(
            jobs.c.status.in_(("queued", "running", "validating_files"))
        )
        named |= set(connection.scalars(needed))
    database.close()
    assert set(stored(settings.folder)) == named, "contents without rows, or rows without contents"


def main(folder: Path, base: str, kinds: list[str]) -> None:
    if "Train" in kinds:
        import peft  # noqa: F401 - before the forks, as are all imports
        import torch  # noqa: F401
        import transformers  # noqa: F401

        from llama_index_finetune_structured.local.train import trainer  # noqa: F401
    assert fastapi.testclient
    done = {}
    for kind in kinds:
        settings = ServiceSettings(
            folder=folder / kind, bases={"tiny": base}, workers=False, attempts=10_000,
            training=LoraSettings(rank=2, batch_size=2),
        )  # fmt: skip
        done[kind] = killed_at_every_step(globals()[kind](settings))
    print(json.dumps(done))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3].split(","))
