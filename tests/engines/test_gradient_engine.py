"""The Gradient engine against a loopback server, with the real SDK."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import SummaryIndex
from llama_index.core.schema import TextNode

from llama_index_finetune_structured import GradientAIFineTuningHandler
from llama_index_finetune_structured.dataset import FinetuneDataset
from llama_index_finetune_structured.demo.corpus import ApiCard, parse_card
from llama_index_finetune_structured.demo.teacher import QA_TEMPLATE, DocstringTeacher
from llama_index_finetune_structured.engines.gradient import GradientFinetuneEngine
from llama_index_finetune_structured.engines.hosted.engine import OpenAIFinetuneEngine
from llama_index_finetune_structured.engines.hosted.journal import list_runs
from llama_index_finetune_structured.engines.timeouts import Timeouts
from llama_index_finetune_structured.errors import (
    ConfigurationError,
    DatasetError,
    EngineError,
    MissingDependencyError,
    ServiceError,
)
from tests.engines.submitting import train_gradient
from tests.fakes.clock import FakeClock
from tests.fakes.gradient_server import BASE_ID, SLUG, GradientServer
from tests.fakes.loopback import Reply, Request

TUNE = r"/api/models/[^/]+/fine-tune"


@pytest.fixture
def gradient() -> Iterator[GradientServer]:
    with GradientServer() as running:
        yield running


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(tmp_path / "samples.jsonl", [f"sample {i}" for i in range(6)])


def write(path: Path, inputs: list[Any]) -> Path:
    path.write_text("".join(json.dumps({"inputs": each}) + "\n" for each in inputs), encoding="utf-8")
    return path


@pytest.fixture
def make(gradient: GradientServer, data: Path) -> Any:
    def build(**options: Any) -> GradientFinetuneEngine:
        given: dict[str, Any] = {
            "base_model_slug": SLUG,
            "name": "albums",
            "data_path": data,
            "host": gradient.host,
            "access_token": gradient.token,
            "workspace_id": gradient.workspace,
            "timeouts": Timeouts(clock=FakeClock(), request_s=20),
        }
        return GradientFinetuneEngine(**given | options)

    return build


def trained(gradient: GradientServer, engine: GradientFinetuneEngine) -> list[list[Any]]:
    return gradient.trained[engine.model_adapter_id]


def test_the_adapter_is_there_straight_after_construction(gradient: GradientServer, make: Any) -> None:
    engine = make()
    assert gradient.adapters[engine.model_adapter_id]["name"] == "albums"
    assert len(engine.model_adapter_id) == 50


def test_each_call_is_one_epoch_over_the_lines(gradient: GradientServer, make: Any) -> None:
    engine = make(max_steps=4, batch_size=3)
    for _ in range(2):
        engine.finetune()
    one = [["sample 0", "sample 1", "sample 2"], ["sample 3"]]
    assert trained(gradient, engine) == one + one
    assert engine.get_current_job().progress["epochs"] == 2


def test_the_model_is_the_adapter_on_the_same_host(gradient: GradientServer, make: Any) -> None:
    engine = make()
    with pytest.raises(EngineError, match="not trained yet"):
        engine.get_finetuned_model()
    engine.finetune()
    llm = engine.get_finetuned_model(max_tokens=500, is_chat_model=True)
    assert (llm.model_adapter_id, llm.host) == (engine.model_adapter_id, gradient.host)
    assert llm.complete("hello").text


def test_the_handlers_lines_are_the_prompt_that_the_tuned_model_is_sent_and_the_answer(
    gradient: GradientServer, make: Any, tmp_path: Path
) -> None:
    teacher, handler = DocstringTeacher(), GradientAIFineTuningHandler()
    handler.attach(teacher)
    index = SummaryIndex([TextNode(text="function: f\n\nm.f\n\nDo.\n\nParameters\n----------\nx : int")])
    index.as_query_engine(llm=teacher, output_cls=ApiCard, text_qa_template=QA_TEMPLATE).query(
        "How do I call f?"
    )
    handler.save_finetuning_events(tmp_path / "events.jsonl")
    engine = make(data_path=tmp_path / "events.jsonl")
    engine.finetune()
    index.as_query_engine(
        llm=engine.get_finetuned_model(), output_cls=ApiCard, text_qa_template=QA_TEMPLATE
    ).query("How do I call f?")
    [asked] = gradient.calls("POST", "/api/models/[^/]+/complete")
    sent = asked.json()["query"]
    [line] = (json.loads(text) for text in (tmp_path / "events.jsonl").read_text().splitlines())
    card = parse_card("f", "Do.\n\nParameters\n----------\nx : int")
    assert line["inputs"] == sent + card.model_dump_json()


def test_an_adapter_is_trained_further_by_its_id(gradient: GradientServer, make: Any) -> None:
    first = make()
    first.finetune()
    again = make(base_model_slug=None, name=None, model_adapter_id=first.model_adapter_id)
    again.finetune()
    assert len(trained(gradient, first)) == 12
    assert len(gradient.adapters) == 1


def test_a_finished_run_made_again_is_a_new_adapter(gradient: GradientServer, make: Any) -> None:
    first = make()
    first.finetune()
    assert make().model_adapter_id != first.model_adapter_id
    assert len(gradient.adapters) == 2


def test_an_output_dir_belongs_to_one_adapter(gradient: GradientServer, make: Any, tmp_path: Path) -> None:
    for _ in range(2):
        engine = make(output_dir=tmp_path / "mine")
        engine.finetune()
    assert engine.output_dir == tmp_path / "mine"
    assert list(gradient.adapters) == [engine.model_adapter_id]
    assert len(trained(gradient, engine)) == 12
    with pytest.raises(ConfigurationError, match=r"holds another run .* give another output_dir"):
        make(output_dir=tmp_path / "mine", name="others")


def test_an_adapter_that_was_deleted_is_made_anew_in_its_output_dir(
    gradient: GradientServer, make: Any, tmp_path: Path
) -> None:
    first = make(output_dir=tmp_path / "mine")
    first_id = first.model_adapter_id
    first.finetune()
    del gradient.adapters[first_id]
    second = make(output_dir=tmp_path / "mine")
    second.finetune()
    assert list(gradient.adapters) == [second.model_adapter_id]
    assert trained(gradient, second) == [[f"sample {i}"] for i in range(6)]


def test_an_adapter_is_attached_to_an_output_dir(gradient: GradientServer, make: Any, tmp_path: Path) -> None:
    first, other = make(), make(name="others")
    by_id = {"base_model_slug": None, "name": None, "output_dir": tmp_path / "mine"}
    engine = make(**by_id, model_adapter_id=first.model_adapter_id)
    assert (engine.output_dir, engine.model_adapter_id) == (tmp_path / "mine", first.model_adapter_id)
    with pytest.raises(ConfigurationError, match=f"holds the run of {first.model_adapter_id}"):
        make(**by_id, model_adapter_id=other.model_adapter_id)


def test_data_and_data_path_are_the_same(gradient: GradientServer, make: Any, data: Path) -> None:
    engine = make(data=data, data_path=None)
    engine.finetune()
    assert trained(gradient, engine) == [[f"sample {i}"] for i in range(6)]


@pytest.mark.parametrize("cut_at", range(6))
def test_an_interrupted_epoch_resumes_in_a_new_process(
    cut_at: int, gradient: GradientServer, make: Any
) -> None:
    first = make()
    gradient.trained[first.model_adapter_id] = []
    _break_after(gradient, cut_at, Reply(403, {"type": "forbidden", "message": "gone"}))
    with pytest.raises(EngineError, match=f"samples {cut_at + 1} to {cut_at + 1}: .*forbidden"):
        first.finetune()
    gradient.faults.clear()
    make().finetune()
    assert trained(gradient, first) == [[f"sample {i}"] for i in range(6)]
    assert len(gradient.adapters) == 1


def _break_after(gradient: GradientServer, batches: int, reply: Reply) -> None:
    original = gradient._tune

    def tune(request: Any, model_id: str) -> Reply:
        if sum(map(len, gradient.trained.values())) >= batches and gradient.faults:
            return reply
        return original(request, model_id)

    gradient._tune = tune  # type: ignore[method-assign]
    gradient.fault("GET", "/never", "reply")


@pytest.mark.parametrize("kind", ["reset", "truncate", "garbage", "html", "reply"])
@pytest.mark.parametrize("accepted", [True, False])
@pytest.mark.parametrize("times", [1, 3])
def test_a_lost_reply_trains_each_batch_once(
    kind: str, accepted: bool, times: int, gradient: GradientServer, make: Any
) -> None:
    engine = make()
    gradient.fault("POST", TUNE, kind, accepted=accepted, times=times)
    engine.finetune()
    assert trained(gradient, engine) == [[f"sample {i}"] for i in range(6)]


@pytest.mark.parametrize("kind", ["reset", "truncate", "garbage", "html", "reply"])
@pytest.mark.parametrize("accepted", [True, False])
def test_a_lost_creation_makes_one_adapter(
    kind: str, accepted: bool, gradient: GradientServer, make: Any
) -> None:
    gradient.fault("POST", "/api/models", kind, accepted=accepted)
    for _ in range(2):
        with asks():
            make()
    assert len(gradient.calls("POST", "/api/models")) == 1
    engine = answered(gradient, make)
    assert list(gradient.adapters) == [engine.model_adapter_id]
    assert make().model_adapter_id == engine.model_adapter_id


def asks() -> Any:
    return pytest.raises(EngineError, match="whether the adapter was created is unknown")


def answered(gradient: GradientServer, make: Any, **options: Any) -> GradientFinetuneEngine:
    """What a user does who looks at the server: go on with the adapter that is there, else ask for one again."""
    unclear = next(folder for folder, run in list_runs() if run.phase == "submitting")
    if not gradient.adapters:
        again: GradientFinetuneEngine = make(resubmit=True, **options)
        return again
    by_id = {"base_model_slug": None, "name": None, "model_adapter_id": list(gradient.adapters)[-1]}
    attached: GradientFinetuneEngine = make(output_dir=unclear, **by_id)
    return attached


def test_the_adapters_in_question_are_named(gradient: GradientServer, make: Any) -> None:
    old = make()
    old.finetune()
    gradient.fault("POST", "/api/models", "reset", accepted=True)
    with asks() as caught:
        make()
    old_id, new_id = gradient.adapters
    assert new_id in str(caught.value)
    assert old_id not in str(caught.value)


def test_an_adapter_of_another_process_is_not_taken_for_a_lost_one(
    gradient: GradientServer, make: Any
) -> None:
    gradient.fault("POST", "/api/models", "reset")
    with asks():
        make()
    gradient.answer(_creation(gradient, "albums"))  # another process's, by the same name
    with asks():
        make()
    make(resubmit=True).finetune()
    theirs, own = gradient.adapters
    assert (len(gradient.trained[theirs]), len(gradient.trained[own])) == (0, 6)


@pytest.mark.parametrize("name", ["albums", "others"])
def test_a_reply_with_another_adapter_is_not_followed(name: str, gradient: GradientServer, make: Any) -> None:
    """By another name, or one that existed before."""
    theirs = gradient.answer(_creation(gradient, name)).body
    gradient.fault("POST", "/api/models", "reply", accepted=True, reply=Reply(200, theirs))
    with asks():
        make()


def _creation(gradient: GradientServer, name: str) -> Request:
    headers = {"authorization": f"Bearer {gradient.token}", "x-gradient-workspace-id": gradient.workspace}
    body = json.dumps({"model": {"baseModelId": BASE_ID, "name": name}}).encode()
    return Request("POST", "/api/models", {}, headers, body)


def test_a_creation_that_is_refused_is_no_question(gradient: GradientServer, make: Any) -> None:
    gradient.fault("POST", "/api/models", "reply", reply=Reply(403, {"type": "forbidden", "message": "no"}))
    with pytest.raises(ServiceError, match="forbidden"):
        make()
    busy = Reply(429, {"type": "busy", "message": "later"})
    gradient.fault("POST", "/api/models", "reply", reply=busy, times=2)
    engine = make()
    assert list(gradient.adapters) == [engine.model_adapter_id]


@pytest.mark.parametrize("path", [TUNE, "/api/models"])
@pytest.mark.parametrize("accepted", [True, False])
def test_a_killed_process_is_resumed(
    path: str, accepted: bool, gradient: GradientServer, make: Any, data: Path
) -> None:
    fault = gradient.fault("POST", path, "hang", accepted=accepted)
    runs = os.environ["LLAMA_INDEX_FINETUNE_STRUCTURED_RUNS"]
    arguments = (gradient.host, gradient.token, gradient.workspace, data, runs)
    process = multiprocessing.get_context("forkserver").Process(target=train_gradient, args=arguments)
    process.start()
    assert fault.seen.wait(60)
    process.kill()
    process.join()
    fault.release.set()
    if path == TUNE:
        engine = make(name="killed")
    else:
        with asks():
            make(name="killed")
        engine = answered(gradient, make, name="killed")
    engine.finetune()
    assert list(gradient.adapters) == [engine.model_adapter_id]
    assert trained(gradient, engine) == [[f"sample {i}"] for i in range(6)]


def test_a_server_that_never_answers_is_given_up(gradient: GradientServer, make: Any) -> None:
    engine = make()
    gradient.fault("POST", TUNE, "reply", times=99)
    with pytest.raises(EngineError, match="go on after the last accepted batch"):
        engine.finetune()
    assert len(gradient.calls("POST", TUNE)) == 6


def test_nan_loss_names_the_lines_and_is_tried_once(
    gradient: GradientServer, make: Any, tmp_path: Path
) -> None:
    engine = make(data_path=write(tmp_path / "nan.jsonl", ["fine", "nan", "fine"]))
    with pytest.raises(
        EngineError, match=r"samples 2 to 2: .*nanLoss.*fix or remove these samples\. Call finetune"
    ):
        engine.finetune()
    assert len(gradient.calls("POST", TUNE)) == 2


def test_parts_that_are_not_trained_on_are_sent_as_they_are(
    gradient: GradientServer, make: Any, tmp_path: Path
) -> None:
    parts = [{"value": "prompt", "trainable": False}, {"value": "answer", "trainable": True}]
    engine = make(data_path=write(tmp_path / "parts.jsonl", [parts]))
    engine.finetune()
    (sent,) = trained(gradient, engine)[0]
    assert [(part["value"], part["trainable"]) for part in sent] == [("prompt", False), ("answer", True)]


@pytest.mark.parametrize(
    "line",
    [
        b"{oops",
        b"[]",
        b'{"text": "x"}',
        b'{"inputs": ""}',
        b'{"inputs": [{"value": "x", "trainable": false}]}',
        b'{"inputs": "\xff"}',
        b"[" * 50_000,
    ],
    ids=lambda line: line[:20].decode("ascii", "replace"),
)
def test_a_line_that_is_no_sample_is_named(
    line: bytes, make: Any, gradient: GradientServer, tmp_path: Path
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b'{"inputs": "fine"}\n' + line + b"\n")
    with pytest.raises(DatasetError, match=r"bad\.jsonl:2: "):
        make(data_path=path).finetune()
    assert gradient.calls("POST", TUNE) == []


def test_an_empty_file_is_no_epoch(make: Any, tmp_path: Path) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_text("")
    with pytest.raises(DatasetError, match="no training lines"):
        make(data_path=path).finetune()


def test_changed_data_starts_the_epoch_again(gradient: GradientServer, make: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "fixed.jsonl", ["a", "nan"])
    engine = make(data_path=path)
    with pytest.raises(EngineError):
        engine.finetune()
    write(path, ["a", "b"])
    make(data_path=path).finetune()
    assert trained(gradient, engine) == [["a"], ["a"], ["b"]]


@pytest.mark.parametrize(
    "options",
    [
        {"model_adapter_id": "x"},
        {"name": None},
        {"base_model_slug": None},
        {"batch_size": 0},
        {"max_steps": 0},
        {"data": "rows.jsonl"},
        {"data_path": None},
    ],
)
def test_arguments_that_do_not_fit_are_refused(options: dict[str, Any], make: Any) -> None:
    with pytest.raises(ConfigurationError):
        make(**options)


def test_an_unknown_slug_lists_those_there_are(make: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"there are: {SLUG}"):
        make(base_model_slug="llama9")


def test_an_unknown_adapter_is_an_error(make: Any) -> None:
    with pytest.raises(ServiceError, match="unknownModelAdapter"):
        make(base_model_slug=None, name=None, model_adapter_id=BASE_ID)


@pytest.mark.parametrize("host", [None, "https://api.gradient.ai/api"])
def test_the_retired_host_is_named_with_what_to_use_instead(host: str | None, make: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"retired.*LoraFinetuneEngine"):
        make(host=host)


def test_a_host_that_is_not_there_is_a_clear_error(make: Any) -> None:
    with pytest.raises(ServiceError, match=r"127\.0\.0\.1:9"):
        make(host="http://127.0.0.1:9/api")


def test_the_environment_gives_host_token_and_workspace(
    gradient: GradientServer, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADIENT_API_URL", gradient.host)
    with pytest.raises(ConfigurationError, match="set GRADIENT_ACCESS_TOKEN"):
        GradientFinetuneEngine(base_model_slug=SLUG, name="n", data_path=data)
    monkeypatch.setenv("GRADIENT_ACCESS_TOKEN", gradient.token)
    monkeypatch.setenv("GRADIENT_WORKSPACE_ID", gradient.workspace)
    assert GradientFinetuneEngine(base_model_slug=SLUG, name="n", data_path=data).model_adapter_id


def test_from_finetuning_handler_saves_and_trains(gradient: GradientServer, tmp_path: Path) -> None:
    class Handler:
        def save_finetuning_events(self, path: str) -> None:
            write(Path(path), ["one"])

    engine = GradientFinetuneEngine.from_finetuning_handler(
        Handler(),
        SLUG,
        tmp_path / "out.jsonl",
        name="handled",
        host=gradient.host,
        access_token=gradient.token,
        workspace_id=gradient.workspace,
    )
    engine.finetune()
    assert trained(gradient, engine) == [["one"]]


def test_verbose_shows_a_bar_with_the_loss(make: Any, capsys: pytest.CaptureFixture[str]) -> None:
    make(verbose=True).finetune()
    assert "loss 0.500" in capsys.readouterr().err


def test_an_unfinished_adapter_that_was_deleted_is_made_anew(gradient: GradientServer, make: Any) -> None:
    first = make()
    del gradient.adapters[first.model_adapter_id]
    second = make()
    second.finetune()
    assert list(gradient.adapters) == [second.model_adapter_id]


def test_two_engines_of_one_name_keep_their_own_journals(gradient: GradientServer, make: Any) -> None:
    first = make()
    first.finetune()
    second = make()
    second.finetune()
    first.finetune()
    assert (len(trained(gradient, first)), len(trained(gradient, second))) == (12, 6)
    assert first.output_dir != second.output_dir


def test_the_other_engine_refuses_a_gradient_run(make: Any) -> None:
    with pytest.raises(ConfigurationError, match="a run of the gradient engine"):
        OpenAIFinetuneEngine.from_run(make().output_dir, api_key="k")


def test_without_the_sdk_the_extra_is_named(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("gradientai", "gradientai.openapi", "gradientai.openapi.client"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match=r"\[gradient\]"):
        make()


async def test_asyncio_does_the_same(gradient: GradientServer, make: Any) -> None:
    engine = make()
    await engine.afinetune()
    llm = await engine.aget_finetuned_model()
    assert (await llm.acomplete("hello")).text
    assert len(trained(gradient, engine)) == 6


def test_a_dataset_and_the_file_it_keeps_itself_in_train_alike(
    gradient: GradientServer, make: Any, tmp_path: Path
) -> None:
    dataset = FinetuneDataset.from_pairs([(f"question {i}", f"answer {i}") for i in range(3)])
    canonical = dataset.save(tmp_path / "canonical.jsonl")
    for data in (dataset, canonical):
        engine = make(data_path=data)
        engine.finetune()
        assert trained(gradient, engine) == [[f"user: question {i}\nassistant: answer {i}"] for i in range(3)]
