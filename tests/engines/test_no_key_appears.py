"""The API key is in no object returned and no file written; a sentinel key is searched for in all of them."""

from __future__ import annotations

import io
import logging
import pickle
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.llms import LLM
from llama_index.core.prompts import PromptTemplate
from llama_index.llms.openai import OpenAI
from llama_index.llms.openai_like import OpenAILike  # type: ignore[import-untyped]
from pydantic import BaseModel

from llama_index_finetune_structured.engines.gradient import GradientFinetuneEngine
from llama_index_finetune_structured.engines.hosted.engine import OpenAIFinetuneEngine
from llama_index_finetune_structured.engines.timeouts import Timeouts
from llama_index_finetune_structured.errors import ConfigurationError
from llama_index_finetune_structured.llms.compat import OpenAIPydanticProgram
from llama_index_finetune_structured.llms.gradient import GradientBaseModelLLM, GradientModelAdapterLLM
from llama_index_finetune_structured.llms.hosted import hosted_llm, text_mode
from tests.fakes.clock import FakeClock
from tests.fakes.gradient_server import SLUG, GradientServer
from tests.fakes.loopback import Reply
from tests.fakes.openai_server import OpenAIServer
from tests.fakes.rows import write_rows

SENTINEL = "sk-SENTINEL-5f0c"


class Album(BaseModel):
    name: str


@pytest.fixture
def openai_server() -> Iterator[OpenAIServer]:
    with OpenAIServer(key=SENTINEL) as running:
        yield running


@pytest.fixture
def gradient() -> Iterator[GradientServer]:
    with GradientServer(token=SENTINEL) as running:
        yield running


@pytest.fixture
def engine(openai_server: OpenAIServer, tmp_path: Path) -> OpenAIFinetuneEngine:
    return OpenAIFinetuneEngine(
        "gpt-4o-mini",
        write_rows(tmp_path / "train.jsonl"),
        api_base=openai_server.base,
        api_key=SENTINEL,
        timeouts=Timeouts(clock=FakeClock()),
    )


@pytest.fixture
def gradient_engine(gradient: GradientServer, tmp_path: Path) -> GradientFinetuneEngine:
    path = tmp_path / "samples.jsonl"
    path.write_text('{"inputs": "one"}\n')
    return GradientFinetuneEngine(
        base_model_slug=SLUG, name="n", data_path=path, host=gradient.host, access_token=SENTINEL,
        workspace_id=gradient.workspace,
    )  # fmt: skip


def surfaces(thing: Any) -> dict[str, str]:
    """Every textual form of an object, by the way it was produced."""
    shown = {"repr": repr(thing), "str": str(thing), "format": f"{thing}", "pickle": pickled(thing)}
    if isinstance(thing, BaseModel):
        shown |= {"model_dump": str(thing.model_dump()), "model_dump_json": thing.model_dump_json()}
    if isinstance(thing, LLM):
        for name in ("to_dict", "to_json", "dict", "json", "to_payload"):
            shown[name] = str(getattr(thing, name)())
        shown["args"] = str(thing.__repr_args__() if hasattr(thing, "__repr_args__") else "")
        shown["metadata"] = repr(thing.metadata)
    return shown


def pickled(thing: Any) -> str:
    try:
        return pickle.dumps(thing).decode("latin-1")
    except (TypeError, AttributeError, pickle.PicklingError):
        return ""


def assert_silent(thing: Any) -> None:
    leaks = [way for way, shown in surfaces(thing).items() if SENTINEL in shown]
    assert leaks == [], f"{type(thing).__name__} shows the key by {leaks}"


def in_use(llm: LLM) -> LLM:
    """The LLM with its clients created, as after a call."""
    llm.complete("hello")
    return llm


LLMS: dict[str, Callable[[Any, Any], LLM]] = {
    "hosted openai": lambda o, _: hosted_llm("ft:gpt-4o-mini:x", api_base=o.base, api_key=SENTINEL),
    "hosted adapter": lambda o, _: hosted_llm(
        "adapter", api_base=o.base, api_key=SENTINEL, default_headers={"x-key": SENTINEL}
    ),
    "text mode of OpenAI": lambda o, _: text_mode(OpenAI("gpt-4", api_base=o.base, api_key=SENTINEL)),
    "text mode of OpenAILike": lambda o, _: text_mode(
        OpenAILike("x", api_base=o.base, api_key=SENTINEL, is_chat_model=True)
    ),
    "text mode of ours": lambda o, _: text_mode(hosted_llm("x", api_base=o.base, api_key=SENTINEL)),
    "gradient base": lambda _, g: GradientBaseModelLLM(
        base_model_slug=SLUG, host=g.host, access_token=SENTINEL, workspace_id=g.workspace
    ),
}


@pytest.mark.parametrize("name", LLMS)
def test_no_llm_shows_its_key(name: str, openai_server: OpenAIServer, gradient: GradientServer) -> None:
    llm = LLMS[name](openai_server, gradient)
    assert_silent(llm)
    assert_silent(in_use(llm))
    assert_silent(llm.as_structured_llm(Album))


@pytest.mark.parametrize("name", LLMS)
def test_a_pickled_llm_takes_its_key_from_the_environment(
    name: str, openai_server: OpenAIServer, gradient: GradientServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SENTINEL)
    monkeypatch.setenv("GRADIENT_ACCESS_TOKEN", SENTINEL)
    llm = pickle.loads(pickle.dumps(in_use(LLMS[name](openai_server, gradient))))
    assert_silent(in_use(llm))


def test_no_key_from_the_environment_is_shown_either(
    openai_server: OpenAIServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SENTINEL)
    assert_silent(in_use(hosted_llm("adapter", api_base=openai_server.base)))


def test_nothing_of_a_whole_run_shows_the_key(
    engine: OpenAIFinetuneEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    logging.getLogger("openai").setLevel(logging.DEBUG)
    engine.finetune()
    llm = engine.get_finetuned_model()
    program = OpenAIPydanticProgram.from_defaults(Album, "An album", llm=llm)
    things = [engine, engine._service, engine._plan, engine.get_current_job(), llm, program, engine.metrics()]
    for thing in things:
        assert_silent(thing)
    assert_no_file(tmp_path)
    assert SENTINEL not in caplog.text


def test_secrets_of_extra_body_are_sent_and_not_stored(tmp_path: Path) -> None:
    body = {"tenant": {"api_key": "plain-words-of-extra"}, "tier": "batch"}

    class Lenient(OpenAIServer):
        def _job_problem(self, sent: dict[str, Any]) -> str | None:
            return super()._job_problem({name: value for name, value in sent.items() if name not in body})

    timeouts = Timeouts(clock=FakeClock())
    with Lenient(key=SENTINEL) as server:
        engine = OpenAIFinetuneEngine(
            "gpt-4o-mini", write_rows(tmp_path / "train.jsonl"), api_base=server.base, api_key=SENTINEL,
            timeouts=timeouts, extra_body=body, output_dir=tmp_path / "run",
        )  # fmt: skip
        engine.finetune()
        for options in ({"extra_body": body}, {}):  # the same run, which has its job
            again = OpenAIFinetuneEngine.from_run(
                tmp_path / "run", api_key=SENTINEL, timeouts=timeouts, **options
            )
            again.finetune()
            assert again.get_current_job().id == engine.get_current_job().id
        (request,) = server.calls("POST", "/v1/fine_tuning/jobs")
    assert request.json()["tenant"] == body["tenant"]
    stored = (tmp_path / "run/run.json").read_text()
    assert "plain-words" not in stored
    assert '"tier": "sha256:' in stored


def test_nothing_of_a_whole_gradient_run_shows_the_token(
    gradient_engine: GradientFinetuneEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    gradient_engine.finetune()
    llm = gradient_engine.get_finetuned_model()
    assert isinstance(llm, GradientModelAdapterLLM)
    for thing in (gradient_engine, gradient_engine._api, gradient_engine.get_current_job(), in_use(llm)):
        assert_silent(thing)
    assert_no_file(tmp_path)
    assert SENTINEL not in caplog.text


def assert_no_file(folder: Path) -> None:
    written = [path for path in folder.rglob("*") if path.is_file()]
    assert any(path.name == "run.json" for path in written)
    for path in written:
        assert SENTINEL.encode() not in path.read_bytes(), path
        if path.name in ("run.json", "lock"):
            assert path.stat().st_mode & 0o077 == 0, path


def shown_failure(call: Callable[[], Any]) -> str:
    """The error as a user or a crash reporter sees it: message, chain and local variables."""
    try:
        call()
    except Exception as error:
        out = io.StringIO()
        for chained in traceback.TracebackException.from_exception(error, capture_locals=True).format():
            out.write(chained)
        return out.getvalue() + repr(error) + str(error) + str(vars(error))
    raise AssertionError("nothing went wrong")


ECHO = {"error": {"message": f"Incorrect API key provided: {SENTINEL}", "code": "invalid_api_key"}}
ECHOES = [
    Reply(401, ECHO),
    Reply(400, ECHO),
    Reply(500, ECHO),
    Reply(403, f"no {SENTINEL}".encode(), "text/plain"),
]


@pytest.mark.parametrize("echo", ECHOES)
@pytest.mark.parametrize(
    ("where", "methods"),
    [
        ("submitting", "POST"),
        ("submitting", "GET POST"),
        ("following", "GET POST"),
        ("cancelling", "GET POST"),
    ],
)
def test_a_provider_that_echoes_the_key_is_not_passed_on(
    echo: Reply,
    where: str,
    methods: str,
    engine: OpenAIFinetuneEngine,
    openai_server: OpenAIServer,
    tmp_path: Path,
) -> None:
    if where != "submitting":
        engine.finetune()
    paths = "/v1/(files|fine_tuning).*" if " " in methods else "/v1/fine_tuning.*"
    for method in methods.split():
        openai_server.fault(method, paths, "reply", reply=echo, times=100_000)
    calls = {
        "submitting": engine.finetune,
        "following": lambda: engine.wait(timeout_s=60),
        "cancelling": engine.cancel,
    }
    assert SENTINEL not in shown_failure(calls[where])
    assert_no_file(tmp_path)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422, 500])
def test_a_gradient_server_that_echoes_the_token_is_not_passed_on(
    status: int, gradient_engine: GradientFinetuneEngine, gradient: GradientServer
) -> None:
    gradient_engine._timeouts = Timeouts(clock=FakeClock())
    echo = Reply(status, {"type": "failed", "message": SENTINEL}, headers={"x-echo": SENTINEL})
    gradient.fault("POST", "/api/.*", "reply", reply=echo, times=100)
    assert SENTINEL not in shown_failure(gradient_engine.finetune)
    llm = GradientModelAdapterLLM(
        model_adapter_id=gradient_engine.model_adapter_id, host=gradient.host, access_token=SENTINEL,
        workspace_id=gradient.workspace, max_retries=0,
    )  # fmt: skip
    assert SENTINEL not in shown_failure(lambda: llm.structured_predict(Album, PromptTemplate("x")))


@pytest.mark.parametrize("status", [400, 401, 500])
@pytest.mark.parametrize("name", ["hosted openai", "hosted adapter", "text mode of OpenAI"])
def test_a_failing_call_of_a_hosted_llm_shows_no_key(
    name: str, status: int, openai_server: OpenAIServer, gradient: GradientServer
) -> None:
    llm = LLMS[name](openai_server, gradient).model_copy(update={"max_retries": 0})
    openai_server.fault("POST", "/v1/chat/completions", "reply", reply=Reply(status, {"error": {}}), times=9)
    assert SENTINEL not in shown_failure(lambda: llm.complete("hello"))
    assert SENTINEL not in shown_failure(lambda: llm.structured_predict(Album, PromptTemplate("x")))


def test_settings_that_do_not_fit_show_no_key(
    engine: OpenAIFinetuneEngine, gradient_engine: GradientFinetuneEngine
) -> None:
    engine.finetune()
    gradient_engine.finetune()
    assert SENTINEL not in shown_failure(lambda: engine.get_finetuned_model(temperature=99))
    assert SENTINEL not in shown_failure(lambda: engine.get_finetuned_model(model="x", temperature=99))
    assert SENTINEL not in shown_failure(lambda: gradient_engine.get_finetuned_model(max_tokens=600))


@pytest.mark.parametrize("form", ["http://user:{}@127.0.0.1/v1", "http://127.0.0.1/v1?key={}"])
def test_an_address_with_a_key_in_it_is_refused(form: str) -> None:
    def build() -> None:
        OpenAIFinetuneEngine("gpt-4o-mini", "x.jsonl", api_base=form.format("s3cret"), api_key="k")

    with pytest.raises(ConfigurationError, match="give the key as api_key") as caught:
        build()
    assert "s3cret" not in str(caught.value)
