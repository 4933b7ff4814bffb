"""Files and uploads, by the unmodified SDK: what is sent comes back, in pages, for its owner, until it is deleted."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest

from llama_index_finetune_structured.service.blobs import Blobs
from llama_index_finetune_structured.service.database import Database, files, jobs
from llama_index_finetune_structured.service.errors import ApiError
from llama_index_finetune_structured.service.settings import ServiceSettings
from llama_index_finetune_structured.service.stored_files import checked_text, sweep
from tests.service.conftest import Running
from tests.service.serving import rows, stored


def test_a_file_comes_back_as_it_was_sent_until_it_is_deleted(client: openai.OpenAI) -> None:
    sent = client.files.create(
        file=("Ergebnisse ü 日本.jsonl", rows()),
        purpose="fine-tune",
        expires_after={"anchor": "created_at", "seconds": 3600},
    )
    assert (sent.bytes, sent.filename, sent.purpose) == (len(rows()), "Ergebnisse ü 日本.jsonl", "fine-tune")
    assert sent.expires_at == sent.created_at + 3600
    assert client.files.retrieve(sent.id) == sent
    assert client.files.content(sent.id).read() == rows()
    assert client.files.delete(sent.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.content(sent.id)


def test_files_are_listed_in_pages_in_both_orders_and_by_purpose(client: openai.OpenAI) -> None:
    assert list(client.files.list()) == []
    sent = [
        client.files.create(file=(f"{n}.txt", b"text"), purpose="user_data" if n % 2 else "vision")
        for n in range(5)
    ]
    assert [file.id for file in client.files.list(limit=2)] == [file.id for file in reversed(sent)]
    assert [file.id for file in client.files.list(limit=3, order="asc")] == [file.id for file in sent]
    assert [file.filename for file in client.files.list(purpose="user_data")] == ["3.txt", "1.txt"]
    assert client.files.list(limit=4).has_more
    with pytest.raises(openai.BadRequestError) as error:
        client.files.list(after="file-of-nobody")
    assert error.value.param == "after"


def test_a_content_is_kept_once_and_until_its_last_file_is_deleted(service: Running) -> None:
    first, second = service.client(), service.client()
    content = b'{"only": "here"}\n'
    name = hashlib.sha256(content).hexdigest()
    sent = [each.files.create(file=("a.jsonl", content), purpose="fine-tune") for each in (first, second)]
    assert stored(service.settings.folder).count(name) == 1
    first.files.delete(sent[0].id)
    assert second.files.content(sent[1].id).read() == content
    second.files.delete(sent[1].id)
    assert name not in stored(service.settings.folder)


@pytest.mark.parametrize(
    ("sent", "param"),
    [
        ({"file": ("a.jsonl", b"\xff\xfe{"), "purpose": "fine-tune"}, "file"),
        ({"file": ("a.jsonl", "{}\n{ü}".encode("latin-1")), "purpose": "fine-tune"}, "file"),
        ({"file": ("a.jsonl", "{ü".encode()[:-1]), "purpose": "fine-tune"}, "file"),
        ({"file": ("a.zip", b"PK\x03\x04"), "purpose": "fine-tune"}, "file"),
        ({"file": ("a.jsonl", b""), "purpose": "fine-tune"}, "file"),
        ({"file": ("a" * 300, b"{}"), "purpose": "fine-tune"}, "file"),
        ({"file": ("a.jsonl", b"{}"), "purpose": "no-purpose"}, "purpose"),
        (
            {
                "file": ("a.jsonl", b"{}"),
                "purpose": "fine-tune",
                "expires_after": {"anchor": "created_at", "seconds": 1},
            },
            "expires_after.seconds",
        ),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used_is_refused_with_its_field_and_leaves_nothing(
    service: Running, client: openai.OpenAI, sent: dict[str, Any], param: str
) -> None:
    before = stored(service.settings.folder)
    with pytest.raises(openai.BadRequestError) as error:
        client.files.create(**sent)
    assert error.value.param == param
    assert stored(service.settings.folder) == before
    assert list(client.files.list()) == []


def test_the_line_that_is_not_utf8_is_named(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="Line 3 is not UTF-8"):
        client.files.create(file=("a.jsonl", b'{}\n{}\n{"\xff"}\n'), purpose="fine-tune")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"\n\n[1]\n", "Line 3 begins with '['"),
        (b"a,b\n", "Line 1 begins with 'a'"),
        (b'\n{\n "a": 1\n}\n', "Line 2 is no JSON (Expecting property name"),
        (b'{"a": [1}', "Line 1 is no JSON"),
    ],
)
def test_the_line_that_is_no_object_is_named(client: openai.OpenAI, content: bytes, told: str) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        client.files.create(file=("a.jsonl", content), purpose="fine-tune")
    assert told in error.value.message
    assert ": expected JSON Lines, one JSON object a line." in error.value.message


def _checked(content: bytes, size: int) -> bytes:
    """A file for fine-tuning that arrives in chunks of this size, as it is stored."""

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(content), size):
            yield content[start : start + size]

    async def stored_bytes() -> bytes:
        return b"".join([chunk async for chunk in checked_text(chunks(), "fine-tune")])

    return asyncio.run(stored_bytes())


@pytest.mark.parametrize("size", [1, 7, 64, 1 << 22])
def test_a_first_line_is_read_whole_however_it_arrives(size: int) -> None:
    row = json.dumps({"messages": [{"role": "user", "content": "ü € 😀"}]}, ensure_ascii=False)
    for good in (f"\n \n{row}\n{row}", row, f"\ufeff{row}\r\n"):
        assert _checked(good.encode(), size) == good.encode()
    for bad, line in ((f"\n \n{row[:-1]}\n{row}", 3), (row[:-1], 1), (f"\n{row} {row}", 2), ("\n\n [", 3)):
        with pytest.raises(ApiError, match=f"Line {line} (is no JSON|begins with)"):
            _checked(bad.encode(), size)
    with pytest.raises(ApiError, match="The file is empty"):
        _checked(b" \n\n", size)


def test_a_first_line_that_is_very_long_is_left_to_the_job() -> None:
    content = b'{"a": "' + b"x" * (2 << 20) + b"\n"
    assert _checked(content, 1 << 16) == content


def test_the_sdk_sends_a_large_file_in_parts(client: openai.OpenAI) -> None:
    content = b"{}\n" + bytes(range(32, 127)) * 6000
    upload = client.uploads.upload_file_chunked(
        file=io.BytesIO(content).getvalue(),
        filename="large.jsonl",
        bytes=len(content),
        mime_type="text/jsonl",
        purpose="fine-tune",
        part_size=200_000,
        md5=hashlib.md5(content).hexdigest(),
    )
    assert upload.status == "completed"
    assert upload.file is not None
    assert client.files.content(upload.file.id).read() == content
    with pytest.raises(openai.BadRequestError, match="completed"):
        client.uploads.cancel(upload.id)


def test_parts_are_joined_in_the_order_that_the_client_names(client: openai.OpenAI) -> None:
    upload = client.uploads.create(filename="a.jsonl", bytes=4, mime_type="x", purpose="fine-tune")
    last, first = (client.uploads.parts.create(upload.id, data=data).id for data in (b"}\n", b"{ "))
    wrong_sum = "0" * 32
    for part_ids, md5, param in (
        ([first], None, "part_ids"),
        ([first, first], None, "part_ids"),
        ([first, last], wrong_sum, "md5"),
        ([last, first], None, "file"),  # no JSON
    ):
        with pytest.raises(openai.BadRequestError) as error:
            client.uploads.complete(upload.id, part_ids=part_ids, md5=md5 or openai.omit)
        assert error.value.param == param
    with pytest.raises(openai.NotFoundError):
        client.uploads.complete(upload.id, part_ids=["part_of_another"])
    with pytest.raises(openai.BadRequestError, match="more than the upload's 4 bytes"):
        client.uploads.parts.create(upload.id, data=b"1")
    done = client.uploads.complete(upload.id, part_ids=[first, last])
    assert done.file is not None
    assert client.files.content(done.file.id).read() == b"{ }\n"


def test_a_cancelled_upload_leaves_nothing(service: Running, client: openai.OpenAI) -> None:
    before = stored(service.settings.folder)
    upload = client.uploads.create(filename="a.jsonl", bytes=40, mime_type="x", purpose="fine-tune")
    client.uploads.parts.create(upload.id, data=b"a part of nothing else")
    assert len(stored(service.settings.folder)) == len(before) + 1
    assert client.uploads.cancel(upload.id).status == "cancelled"
    assert stored(service.settings.folder) == before
    with pytest.raises(openai.BadRequestError, match="cancelled"):
        client.uploads.parts.create(upload.id, data=b"more")


async def _store(blobs: Blobs, content: bytes, owner: str, **columns: Any) -> str:
    async def chunks() -> Any:
        yield content

    def record(connection: Any, blob: Any) -> None:
        row = {
            "id": blob.sha256, "owner": owner, "created_at": 1, "filename": "f", "purpose": "p",
            "bytes": blob.size, "sha256": blob.sha256,
        }  # fmt: skip
        connection.execute(files.insert().values(**row, **columns))

    return (await blobs.store(chunks(), 100, record)).sha256


async def test_a_start_removes_what_a_killed_server_left_and_nothing_else(tmp_path: Path) -> None:
    settings = ServiceSettings(folder=tmp_path)
    database = Database(settings.database_path)
    blobs = Blobs(settings.blobs_folder, database)
    kept = await _store(blobs, b"kept", "a")
    (settings.blobs_folder / "0.part").write_bytes(b"half")
    (settings.blobs_folder / "ab").mkdir()
    (settings.blobs_folder / "ab" / ("ab" * 32)).write_bytes(b"no row names it")
    blobs.clean_up()
    assert stored(tmp_path) == [kept]
    database.close()


async def test_a_content_whose_row_is_refused_leaves_nothing(tmp_path: Path) -> None:
    settings = ServiceSettings(folder=tmp_path)
    database = Database(settings.database_path)
    blobs = Blobs(settings.blobs_folder, database)
    await _store(blobs, b"first", "a")
    before = stored(tmp_path)
    with pytest.raises(Exception, match="UNIQUE"):
        await _store(blobs, b"first", "b")  # the same id
    with pytest.raises(Exception, match="Unconsumed column"):
        await _store(blobs, b"second", "b", no_column=1)
    with pytest.raises(Exception, match="more than 100 bytes"):
        await _store(blobs, b"x" * 101, "b")
    assert stored(tmp_path) == before
    database.close()


async def test_expired_files_go_unless_a_job_still_needs_their_content(tmp_path: Path) -> None:
    settings = ServiceSettings(folder=tmp_path)
    database = Database(settings.database_path)
    blobs = Blobs(settings.blobs_folder, database)
    needed = await _store(blobs, b"needed", "a", expires_at=2)
    await _store(blobs, b"gone", "a", expires_at=2)
    later = await _store(blobs, b"later", "a", expires_at=2**40)
    job = {
        "id": "j", "owner": "a", "created_at": 1, "model": "m", "status": "paused", "training_file": needed,
        "training_sha256": needed, "training_name": "f", "hyperparameters": {}, "seed": 1,
    }  # fmt: skip
    with database.write() as connection:
        connection.execute(jobs.insert().values(job))
    sweep(database, blobs)
    assert stored(tmp_path) == sorted([needed, later])
    database.close()
