"""``FollowingLoraLLM``: each call is answered by the version that serves, and none is lost while that changes."""

from __future__ import annotations

import asyncio
import copy
import pickle
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import PromptTemplate, SummaryIndex
from llama_index.core.callbacks import CallbackManager
from llama_index.core.llms import ChatMessage, MockLLM
from llama_index.core.schema import TextNode

from llama_index_finetune_structured import (
    Cascade,
    ConfigurationError,
    FinetuneDataset,
    FollowingLoraLLM,
    LoraFinetuneEngine,
    LoraLLM,
    LoraSettings,
    capture,
    trust_of,
)
from llama_index_finetune_structured.local.model.versions import ServedVersion, version_folder, write_history
from tests import tiny
from tests.tuning.test_tune import Song, songs

ASKED = [ChatMessage(content="Track 7: 99 s")]
PROMPT = PromptTemplate("{text}")
WEIGHTS = "adapter/adapter_model.safetensors"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with three versions, of which the first serves."""
    folder = tmp_path_factory.mktemp("trained")
    base = tiny.save("llama", folder / "base")
    for number, version in enumerate(("0001", "0002", "0003")):
        settings = LoraSettings(epochs=1 + number, learning_rate=0.02, rank=2)
        to = version_folder(folder / "run", version)
        LoraFinetuneEngine(songs(8), base_model=base, output_dir=to, config=settings).finetune()
    _serve(folder / "run", "0001")
    return folder / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def _serve(run: Path, *versions: str) -> None:
    write_history(run, [ServedVersion(version=version, reason="a test") for version in versions])


def _text(run: Path, version: str) -> str:
    return _chat(LoraLLM.from_adapter(version_folder(run, version) / "adapter", max_new_tokens=12))


def _chat(llm: Any) -> str:
    return str(llm.chat(ASKED).message.content)


def _following(run: Path, **kwargs: Any) -> FollowingLoraLLM:
    return FollowingLoraLLM(run=run, max_new_tokens=12, **kwargs)


def _last(stream: Any) -> Any:
    *_, last = stream
    return last


async def _alast(stream: Any) -> Any:
    return [item async for item in stream][-1]


def _asynchronous(ask: Callable[[Any], Any]) -> Callable[[Any], str]:
    return lambda llm: asyncio.run(ask(llm))


async def _achat(llm: Any) -> str:
    return str((await llm.achat(ASKED)).message.content)


async def _astream_chat(llm: Any) -> str:
    return str((await _alast(await llm.astream_chat(ASKED))).message.content)


async def _acomplete(llm: Any) -> str:
    return str((await llm.acomplete(ASKED[0].content)).text)


async def _astream_complete(llm: Any) -> str:
    return str((await _alast(await llm.astream_complete(ASKED[0].content))).text)


async def _astructured(llm: Any) -> str:
    return repr(await llm.astructured_predict(Song, PROMPT, text="Track 7: 99 s"))


async def _astream_structured(llm: Any) -> str:
    return repr(await _alast(await llm.astream_structured_predict(Song, PROMPT, text="Track 7: 99 s")))


WAYS: dict[str, Callable[[Any], str]] = {
    "chat": _chat,
    "achat": _asynchronous(_achat),
    "stream_chat": lambda llm: str(_last(llm.stream_chat(ASKED)).message.content),
    "astream_chat": _asynchronous(_astream_chat),
    "complete": lambda llm: str(llm.complete(ASKED[0].content).text),
    "acomplete": _asynchronous(_acomplete),
    "stream_complete": lambda llm: str(_last(llm.stream_complete(ASKED[0].content)).text),
    "astream_complete": _asynchronous(_astream_complete),
    "structured_predict": lambda llm: repr(llm.structured_predict(Song, PROMPT, text="Track 7: 99 s")),
    "astructured_predict": _asynchronous(_astructured),
    "stream_structured_predict": lambda llm: repr(
        _last(llm.stream_structured_predict(Song, PROMPT, text="Track 7: 99 s"))
    ),
    "astream_structured_predict": _asynchronous(_astream_structured),
    "predict": lambda llm: str(llm.predict(PROMPT, text="Track 7: 99 s")),
    "as_structured_llm": lambda llm: repr(llm.as_structured_llm(Song).complete("Track 7: 99 s").raw),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_ask_is_answered_by_the_version_that_serves(run: Path, way: str) -> None:
    ask, llm = WAYS[way], FollowingLoraLLM(run=run, max_new_tokens=120)
    plain = [
        ask(LoraLLM.from_adapter(version_folder(run, name) / "adapter", max_new_tokens=120))
        for name in ("0001", "0003")
    ]
    assert ask(llm) == plain[0]
    _serve(run, "0001", "0003")
    assert ask(llm) == plain[1]
    assert Path(llm.metadata.model_name) == run / "versions" / "0003" / "adapter"


def test_versions_answer_differently(trained: Path) -> None:
    assert len({_text(trained, version) for version in ("0001", "0002", "0003")}) == 3


def test_a_call_in_progress_ends_with_the_version_that_it_began_with(run: Path) -> None:
    llm = _following(run)
    stream = llm.stream_chat(ASKED)
    next(stream)
    _serve(run, "0001", "0002")
    assert _chat(llm) == _text(run, "0002")
    assert _last(stream).message.content == _text(run, "0001")


def test_while_a_version_loads_other_calls_are_answered_by_the_one_before(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm, old, new = _following(run), _text(run, "0001"), _text(run, "0002")
    begun, free, make = threading.Event(), threading.Event(), LoraLLM.from_adapter

    def slow(*args: Any, **kwargs: Any) -> LoraLLM:
        begun.set()
        assert free.wait(60)
        return make(*args, **kwargs)

    monkeypatch.setattr(LoraLLM, "from_adapter", slow)
    _serve(run, "0001", "0002")
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(_chat(llm)))
    thread.start()
    assert begun.wait(60)
    assert [_chat(llm), WAYS["achat"](llm)] == [old, old]
    free.set()
    thread.join()
    assert found == [new]
    assert _chat(llm) == new


@pytest.mark.parametrize(
    "damage",
    [
        lambda run: (run / "versions/0002" / WEIGHTS).write_bytes(b"damaged"),
        lambda run: shutil.rmtree(run / "versions/0002"),
        lambda run: (run / "current.json").write_text('{"serves"'),
        lambda run: (run / "current.json").unlink(),
    ],
    ids=["weights", "folder", "pointer", "no pointer"],
)
def test_where_the_new_version_cannot_be_loaded_the_old_one_goes_on_with_one_warning(
    run: Path, damage: Callable[[Path], Any], caplog: pytest.LogCaptureFixture
) -> None:
    llm, old = _following(run), _text(run, "0001")
    _serve(run, "0001", "0002")
    damage(run)
    assert [_chat(llm) for _ in range(3)] == [old] * 3
    assert caplog.text.count("the version that serves now cannot be loaded") == 1
    _serve(run, "0001", "0003")
    assert _chat(llm) == _text(run, "0003")


def test_a_version_gone_back_to_answers_again(run: Path) -> None:
    llm = _following(run)
    for served in (("0001", "0002"), ("0001", "0002", "0001"), ("0001", "0003")):
        _serve(run, *served)
        assert _chat(llm) == _text(run, served[-1])


def test_many_threads_see_only_answers_of_whole_versions(run: Path) -> None:
    llm, answers = _following(run), {_text(run, version) for version in ("0001", "0002", "0003")}
    found: list[str] = []

    def ask() -> None:
        found.extend(_chat(llm) for _ in range(6))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for version in ("0002", "0003", "0001", "0002"):
        _serve(run, "0001", version)
        _chat(llm)
    for thread in threads:
        thread.join()
    assert len(found) == 24
    assert set(found) <= answers
    assert _chat(llm) == _text(run, "0002")


def test_a_run_with_one_version_is_answered_by_it(run: Path) -> None:
    shutil.rmtree(run / "versions")
    (run / "current.json").unlink()
    assert _chat(_following(run)) == _text(run, "0001")


def test_copies_and_pickles_follow_too(run: Path) -> None:
    llm = _following(run, system_prompt="Be short.")
    copies = [copy.deepcopy(llm), pickle.loads(pickle.dumps(llm)), llm.model_copy()]
    _serve(run, "0001", "0002")
    expected = _chat(llm)
    assert [_chat(each) for each in copies] == [expected] * 3
    assert [each.system_prompt for each in copies] == ["Be short."] * 3


def test_attributes_of_every_llm_and_of_lora_llm_hold_for_every_version(run: Path) -> None:
    llm = _following(run, system_prompt="Be short.", temperature=0.5)
    manager = CallbackManager([])
    llm.callback_manager = manager  # as LlamaIndex does it
    _serve(run, "0001", "0002")
    inner = llm._latest()
    assert inner.adapter == run / "versions" / "0002" / "adapter"
    assert (inner.system_prompt, inner.temperature, inner.max_new_tokens) == ("Be short.", 0.5, 12)
    assert inner.callback_manager is manager


def test_a_query_engine_is_answered_with_objects(run: Path) -> None:
    llm = FollowingLoraLLM(run=run)
    engine = SummaryIndex([TextNode(text="Track 7: 99 s")]).as_query_engine(llm=llm, output_cls=Song)
    _serve(run, "0001", "0002")
    assert isinstance(engine.query("Which track?").response, Song)


def test_a_call_is_captured_once(run: Path, tmp_path: Path) -> None:
    llm = FollowingLoraLLM(run=run, max_new_tokens=120)  # answers that were cut are not captured
    with capture(tmp_path / "calls.jsonl"):
        WAYS["structured_predict"](llm)
        WAYS["astructured_predict"](llm)
    assert len(FinetuneDataset.load(tmp_path / "calls.jsonl")) == 2


def test_a_cascade_follows_it_and_says_which_version_answered(run: Path) -> None:
    student = FollowingLoraLLM(run=run, max_new_tokens=120)
    cascade = Cascade(student, MockLLM(), threshold=1e-9)

    def answered_by() -> Path:
        return Path(trust_of(cascade.structured_predict(Song, PROMPT, text="Track 7: 99 s")).answered_by)

    assert answered_by() == run / "adapter"
    _serve(run, "0001", "0003")
    assert answered_by() == run / "versions" / "0003" / "adapter"


def test_what_is_wrong_at_the_start_is_an_error(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no adapter there"):
        FollowingLoraLLM(run=tmp_path / "none")
    with pytest.raises(ConfigurationError, match="did you mean temperature"):
        FollowingLoraLLM(run=run, temperatures=1.0)
    (run / "current.json").write_text("{}")
    with pytest.raises(ConfigurationError, match="not known which version serves"):
        FollowingLoraLLM(run=run)
