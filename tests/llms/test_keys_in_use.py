"""A secret given in any way is in no text that leaves the process, whatever a server or proxy echoes of it."""

from __future__ import annotations

import base64
import json
import logging
import os
import pickle
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from llama_index.core.llms import LLM, ChatMessage
from pydantic import BaseModel, SecretStr
from typer.testing import CliRunner

from llama_index_finetune_structured import hosted_llm
from llama_index_finetune_structured.capture import known_secrets
from llama_index_finetune_structured.capture.known_secrets import (
    is_secret_setting,
    mask_error,
    mask_secrets,
    remember_secret,
    remember_secrets_in,
    without_secret_settings,
)
from llama_index_finetune_structured.cli import app
from llama_index_finetune_structured.dataset import CallPolicy
from llama_index_finetune_structured.dataset.generate.llm_calls import LlmCall, LlmCalls
from llama_index_finetune_structured.errors import ServiceError
from llama_index_finetune_structured.llms.gradient import GradientBaseModelLLM
from tests.evaluation.systems import DATA, quiet
from tests.fakes.gradient_server import SLUG, GradientServer
from tests.fakes.loopback import Reply
from tests.fakes.openai_server import OpenAIServer

SECRET = "plain words/of+\"one'key"
HEADER = "plain-words-of-a-key"  # what a header can hold; no pattern finds it


@pytest.fixture(autouse=True)
def _no_key_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    with OpenAIServer(key=HEADER) as running:
        yield running


FORMS: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "percent-encoded": lambda secret: quote(secret, safe=""),
    "percent-encoded twice": lambda secret: quote(quote(secret, safe=""), safe=""),
    "percent-encoded in small letters": lambda secret: (
        quote(secret, safe="").replace("%2F", "%2f").replace("%2B", "%2b")
    ),
    "of a form": lambda secret: quote(secret, safe="").replace("%20", "+"),
    "JSON": json.dumps,
    "JSON in JSON": lambda secret: json.dumps(json.dumps(secret)),
    "repr": repr,
    "in capitals": str.upper,
    "base64": lambda secret: base64.b64encode(secret.encode()).decode(),
    "base64 with a name": lambda secret: base64.b64encode(f"ada:{secret}".encode()).decode(),
    "base64 with a longer name": lambda secret: base64.b64encode(f"ada.l:{secret}:x".encode()).decode(),
    "base64 of an address": lambda secret: base64.urlsafe_b64encode(f"u:{secret}".encode()).decode(),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_secret_is_masked_in_every_form_that_requests_and_errors_give_it(form: str) -> None:
    shown = FORMS[form](SECRET)
    remember_secret(SecretStr(SECRET))
    masked = mask_secrets(f"before <{shown}> after")
    assert shown not in masked
    assert masked.startswith("before <")
    assert masked.endswith("> after")
    assert "[KEY]" in masked


def test_short_values_and_placeholders_are_words_not_secrets() -> None:
    for value in (None, "", "none", "k", "EMPTY"):
        remember_secret(value)
    assert mask_secrets("none of the EMPTY keys") == "none of the EMPTY keys"


def test_only_the_newest_thousand_secrets_are_kept() -> None:
    for number in range(3_000):
        remember_secret(f"secret-{number:06}")
    assert len(known_secrets._given) == 1_000
    assert mask_secrets("secret-002999 secret-000001") == "[KEY] secret-000001"


@pytest.mark.parametrize(
    "name", ["X_API_KEY", "GITHUB_TOKEN", "db_password", "AWS_SECRET", "OPENAI_API_KEY_2", "MY_CREDENTIALS"]
)
def test_the_environment_is_masked_by_the_names_of_secrets(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "plainenvironment")
    monkeypatch.setenv("PLAIN_SETTING", "plainsetting")
    assert mask_secrets("plainenvironment plainsetting") == "[KEY] plainsetting"


def test_settings_are_told_from_secrets_by_their_names() -> None:
    names = ["Authorization", "x-api-key", "api_key", "Cookie", "client_secret", "access_token", "password"]
    assert all(is_secret_setting(name) for name in names)
    others = [
        "max_tokens",
        "max_completion_tokens",
        "user-agent",
        "seed",
        "token_count",
        "eos_token_id",
        "temperature",
        "tokenizer",
        "eos_token",
        "stop_token",
        "thinking_token_budget",
    ]
    assert not any(is_secret_setting(name) for name in others)
    assert without_secret_settings({"a": [{"api_key": "x", "b": 1}]}) == {"a": [{"b": 1}]}


def test_a_chain_of_errors_is_masked_with_its_attributes() -> None:
    remember_secrets_in({"headers": {"Authorization": f"Bearer {HEADER}"}})

    class Reported(Exception):
        def __init__(self, text: str) -> None:
            super().__init__(text)
            self.body = {"error": [text]}

    cause = Reported(f"401 for {HEADER}")
    error = ValueError("again", HEADER)
    error.__cause__, cause.__context__ = cause, error  # a circle ends too
    mask_error(error)
    cause.__context__ = None
    assert HEADER not in everything_shown(error)
    assert error.args == ("again", "[KEY]")
    assert cause.body == {"error": ["401 for [KEY]"]}


GIVEN: dict[str, Callable[[str], LLM]] = {
    "api_key": lambda base: hosted_llm("m", api_base=base, api_key=HEADER, max_retries=0),
    "SecretStr": lambda base: hosted_llm("m", api_base=base, api_key=SecretStr(HEADER), max_retries=0),
    "known model": lambda base: hosted_llm("gpt-4o-mini", api_base=base, api_key=HEADER, max_retries=2),
    "environment": lambda base: hosted_llm("m", api_base=base, max_retries=0),
    "default_headers": lambda base: hosted_llm(
        "m", api_base=base, api_key="other-key", default_headers={"x-api-key": HEADER}, max_retries=0
    ),
    "extra_body": lambda base: hosted_llm(
        "m",
        api_base=base,
        api_key="other-key",
        additional_kwargs={"extra_body": {"tenant": {"client_secret": HEADER}}},
        max_retries=0,
    ),
    "extra_headers": lambda base: hosted_llm(
        "m",
        api_base=base,
        api_key="other-key",
        additional_kwargs={"extra_headers": {"Authorization": f"Bearer {HEADER}"}},
        max_retries=0,
    ),
}
_BASIC = base64.b64encode(f"u:{HEADER}".encode()).decode()
ECHOES = {
    "401 with the header": Reply(401, {"error": {"message": f"bad key {HEADER}", "code": "invalid_api_key"}}),
    "400 with the address": Reply(400, f"GET https://h/v1?k={HEADER}".encode(), "text/plain"),
    "403 with Basic": Reply(403, {"error": {"message": f"Basic {_BASIC}"}}),
    "500 in HTML": Reply(500, f"<html>{HEADER}</html>".encode(), "text/html"),
    "429": Reply(429, {"error": {"message": f"slow down, {HEADER}", "code": "rate_limit"}}),
    "redirect": Reply(302, b"", "text/plain", headers={"location": f"http://u:{HEADER}@127.0.0.1:9/"}),
    "200 with a stream that fails": Reply(
        200, f'data: {{"error": {{"message": "stopped for {HEADER}"}}}}\n\n'.encode(), "text/event-stream"
    ),
}


class Answer(BaseModel):
    name: str


CALLS: dict[str, Callable[[LLM], Any]] = {
    "chat": lambda llm: llm.chat([ChatMessage(content="x")]),
    "stream": lambda llm: list(llm.stream_chat([ChatMessage(content="x")])),
    "complete": lambda llm: llm.complete("x"),
    "structured": lambda llm: llm.as_structured_llm(Answer).complete("x"),
}


def everything_shown(error: BaseException) -> str:
    """The error as a log, a crash reporter or a user's ``except`` shows it, with all that it is chained to."""
    texts = ["".join(traceback.format_exception(error))]
    pending: list[BaseException | None] = [error]
    seen: set[int] = set()
    while pending:
        current = pending.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        texts += [str(current), repr(current), str(current.args), str(vars(current))]
        pending += [current.__cause__, current.__context__]
    return "\n".join(texts)


def _failure_of(call: Callable[[LLM], Any], llm: LLM) -> str:
    """What the call's error shows, if it fails: a reply of status 200 may be an answer."""
    try:
        call(llm)
    except Exception as error:
        return everything_shown(error)
    return ""


@pytest.mark.parametrize("echo", ECHOES)
@pytest.mark.parametrize("given", GIVEN)
def test_what_a_proxy_echoes_is_in_no_error_log_or_dump(
    given: str,
    echo: str,
    server: OpenAIServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.INFO)
    for name in ("openai", "httpx", "httpcore"):  # their own logs show requests and addresses as they are
        monkeypatch.setattr(logging.getLogger(name), "disabled", True)
    if given == "environment":
        monkeypatch.setenv("OPENAI_API_KEY", HEADER)
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda _: None)
    llm = GIVEN[given](server.base)
    server.fault("POST", "/v1/.*", "reply", reply=ECHOES[echo], times=1_000)
    for name, call in CALLS.items():
        failure = _failure_of(call, llm)
        assert HEADER not in failure, name
        assert _BASIC not in failure, name
    shown = [
        repr(llm),
        str(llm),
        str(llm.model_dump()),
        llm.model_dump_json(),
        str(llm.to_dict()),
        llm.to_json(),
    ]
    shown += [str(llm.__repr_args__()), pickle.dumps(llm).decode("latin-1")]
    assert [text for text in shown if HEADER in text] == []
    assert HEADER not in caplog.text
    assert HEADER not in "".join(capfd.readouterr())


async def test_asynchronous_streams_are_masked_as_well(server: OpenAIServer) -> None:
    llm = GIVEN["api_key"](server.base)
    for echo in ("401 with the header", "200 with a stream that fails"):
        server.fault("POST", "/v1/.*", "reply", reply=ECHOES[echo], times=1)
        with pytest.raises(Exception) as caught:  # noqa: PT011
            async for _ in await llm.astream_chat([ChatMessage(content="x")]):
                pass
        assert HEADER not in everything_shown(caught.value)
        assert "[KEY]" in str(caught.value)


@pytest.mark.parametrize(
    "echo", ["401 with the header", "400 with the address", "403 with Basic", "500 in HTML"]
)
async def test_journals_of_calls_and_answers_hold_no_key(
    echo: str, server: OpenAIServer, tmp_path: Path
) -> None:
    llm = GIVEN["api_key"](server.base)
    server.fault("POST", "/v1/.*", "reply", reply=ECHOES[echo], times=1_000)

    async def make() -> dict[str, Any]:
        return {"text": (await llm.acomplete("x")).text}

    calls = {"a": LlmCall(None, "subject", {}, make)}
    journal = LlmCalls(tmp_path / "calls.jsonl", CallPolicy(attempts=1))
    await journal.run(calls, retry_failed=False, description="", show_progress=False)
    assert len(journal.failures(calls)) == 1
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert written
    assert not any(
        HEADER.encode() in path.read_bytes() or _BASIC.encode() in path.read_bytes() for path in written
    )


@pytest.mark.parametrize(
    "echo", ["401 with the header", "400 with the address", "403 with Basic", "500 in HTML"]
)
def test_scorecards_and_answer_logs_hold_no_key(echo: str, server: OpenAIServer, tmp_path: Path) -> None:
    server.fault("POST", "/v1/.*", "reply", reply=ECHOES[echo], times=1_000)
    card = quiet({"it": GIVEN["api_key"](server.base)}, DATA, cache_dir=tmp_path)
    card.to_html(tmp_path / "card.html")
    card.to_json(tmp_path / "card.json")
    assert card.systems["it"].all_calls_failed
    for path in (path for path in tmp_path.rglob("*") if path.is_file()):
        assert HEADER not in path.read_text()
        assert _BASIC not in path.read_text()


def test_no_error_of_gradient_is_chained_to_the_reply() -> None:
    echo = Reply(401, {"type": "failed", "message": HEADER}, headers={"x-echo": HEADER})
    with GradientServer(token=HEADER) as gradient:
        gradient.fault("GET", "/api/.*", "reply", reply=echo, times=10)
        gradient.fault("POST", "/api/.*", "reply", reply=echo, times=10)
        llm = GradientBaseModelLLM(
            base_model_slug=SLUG,
            host=gradient.host,
            access_token=HEADER,
            workspace_id=gradient.workspace,
            max_retries=0,
        )
        with pytest.raises(ServiceError) as caught:
            llm.complete("x")
    assert HEADER not in everything_shown(caught.value)
    assert "[KEY]" in str(caught.value)


@pytest.mark.parametrize("as_json", [[], ["--json"]])
def test_no_command_prints_the_key_that_a_server_echoes(
    as_json: list[str], server: OpenAIServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", HEADER)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers/one.txt").write_text("Some text about albums. " * 30)
    (tmp_path / "schema.yaml").write_text("name: Answer\nfields:\n  name: string\n")
    echo = ECHOES["401 with the header"]
    server.fault("POST", "/v1/.*", "reply", reply=echo, times=1_000)
    server.fault("GET", "/v1/.*", "reply", reply=echo, times=1_000)
    for base in (server.base, server.base.replace("://", f"://u:{HEADER}@")):
        arguments = ["build", "papers", "--schema", "schema.yaml", "--teacher", "m", "--api-base", base]
        result = CliRunner().invoke(app, [*arguments, "--output", "data.jsonl", *as_json])
        assert result.exit_code != 0
        assert HEADER not in result.output
    for path in (path for path in tmp_path.rglob("*") if path.is_file()):
        assert HEADER.encode() not in path.read_bytes()
    assert os.environ["OPENAI_API_KEY"] == HEADER
