"""The log of the service: each line is a JSON object, and none has content of requests or files."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import httpx
import pytest
from tqdm import tqdm

from llama_index_finetune_structured.service.json_log import json_log, log_failure
from llama_index_finetune_structured.service.pool import _log as own_log
from tests.service.serving import ServerProcess, job_after, rows, sdk, worker_pids

SECRET = "Zyzzyva-4711"


def entries(text: str) -> list[dict[str, Any]]:
    """The lines of a log, each of which is a JSON object."""
    found = [json.loads(line) for line in text.splitlines()]
    assert all(isinstance(entry, dict) for entry in found)
    return found


def test_whatever_is_told_the_log_has_lines_of_json_without_content(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail() -> None:
        raise ValueError(SECRET)

    with json_log():
        own_log.warning("first\nsecond \u2028 line")
        logging.getLogger("some.library").error("no such key: %s", SECRET)
        logging.getLogger("some.library").info("asked %s", SECRET)
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn(SECRET, UserWarning, stacklevel=1)
        for _ in tqdm(range(3), desc=SECRET):
            print(SECRET)
            print(SECRET, file=sys.stderr)
        thread = threading.Thread(target=fail, name="one")
        thread.start()
        thread.join()
        try:
            fail()
        except ValueError as error:
            log_failure(error, "two")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert SECRET not in captured.err
    message, library, warning, thread_failure, failure = entries(captured.err)
    assert message["message"].startswith("first\nsecond")
    assert (library["logger"], library["level"]) == ("some.library", "error")
    assert library["place"].split(":")[0] == __file__
    assert (warning["event"], warning["category"]) == ("warning", "UserWarning")
    assert [(found["error"], found["where"]) for found in (thread_failure, failure)] == [
        ("ValueError", "thread one"),
        ("ValueError", "two"),
    ]
    assert all(entry["time"] for entry in entries(captured.err))


def test_the_process_of_a_worker_tells_its_own_failure_in_a_line_of_json() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "llama_index_finetune_structured.service.worker", "0"],
        input=f'{{"folder": "{SECRET}", "organization": "{SECRET}"}}\n',
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    (failure,) = entries(done.stderr)
    assert (failure["error"], failure["where"]) == ("ValidationError", "worker 0")
    assert SECRET not in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_server_with_its_worker_logs_lines_of_json_without_content(
    tiny_llama: Path, tmp_path: Path
) -> None:
    server = ServerProcess(tmp_path / "service", tiny_llama)
    with sdk(server.base) as client:
        twice = rows().replace(b"Film 1", SECRET.encode())  # lines that are alike are warned of
        files = [
            client.files.create(file=("a.jsonl", content), purpose="fine-tune")
            for content in (twice * 2, b'{"messages": [{"role": "%s"}]}\n' % SECRET.encode())
        ]
        jobs = [client.fine_tuning.jobs.create(model="tiny", training_file=file.id) for file in files]
        done = job_after(client, jobs[0].id, "succeeded")
        assert job_after(client, jobs[1].id, "failed")
        client.chat.completions.create(
            model=done.fine_tuned_model, messages=[{"role": "user", "content": SECRET}], max_tokens=4
        )
    refused = httpx.post(f"{server.base}/v1/embeddings?{SECRET}", content=SECRET.encode())
    assert refused.status_code == 400
    assert worker_pids(tmp_path / "service")
    assert server.stop() == 130
    text = server.log.read_text(encoding="utf-8")
    found = entries(text)
    assert SECRET not in text
    assert found[0]["event"] == "serving"
    assert found[-1]["event"] == "stopped"
    assert "/v1/embeddings" in [entry.get("route") for entry in found]
