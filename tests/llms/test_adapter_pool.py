"""A pool answers by several adapters over one base in memory, each with what its own card says."""

from __future__ import annotations

import asyncio
import gc
import pickle
import shutil
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import PromptTemplate
from llama_index.core.llms import ChatMessage
from pydantic import BaseModel
from safetensors.torch import load, save_file

from llama_index_finetune_structured import LoraLLM, trust_of
from llama_index_finetune_structured.errors import ConfigurationError
from llama_index_finetune_structured.llms.adapter_pool import AdapterPool
from llama_index_finetune_structured.local.model.adapter import read_card, write_card
from llama_index_finetune_structured.local.model.base_files import file_hash
from llama_index_finetune_structured.local.model.devices import peak_memory
from llama_index_finetune_structured.local.model.lora_files import ADAPTER_CONFIG, WEIGHTS
from llama_index_finetune_structured.local.schema.bounds import AnswerBounds
from tests import random_adapters, tiny


class Song(BaseModel):
    title: str
    tags: list[str]


PROMPT = PromptTemplate("Describe {thing}.")


@pytest.fixture(scope="module")
def folders(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Adapters of different ranks and bounds; every other one was trained with short questions twice."""
    made = tmp_path_factory.mktemp("adapters")
    return [
        random_adapters.save(
            tiny_llama,
            made / f"adapter-{n}",
            seed=n,
            rank=(2, 4, 8)[n % 3],
            bounds=AnswerBounds(default_characters=6 + 4 * n, default_items=2),
            reads_twice=bool(n % 2),
            longest_answer_tokens=300 + n,
        )
        for n in range(4)
    ]


def _asked(llm: LoraLLM, thing: str = "a song") -> str:
    return llm.structured_predict(Song, PROMPT, thing=thing).model_dump_json()


@pytest.fixture(scope="module")
def alone(folders: list[Path]) -> list[str]:
    return [_asked(LoraLLM.from_adapter(folder)) for folder in folders]


@pytest.fixture
def pool(tiny_llama: Path) -> AdapterPool:
    return AdapterPool(tiny_llama)


def test_llms_of_a_pool_share_one_base_and_answer_as_each_adapter_alone(
    pool: AdapterPool, folders: list[Path], alone: list[str], tiny_llama: Path
) -> None:
    llms = [pool.llm(folder) for folder in folders]
    titles = [len(Song.model_validate_json(answer).title) for answer in alone]
    assert all(length <= 6 + 4 * n for n, length in enumerate(titles))
    assert {id(llm._loaded.engine) for llm in (*llms, pool.llm())} == {id(llms[0]._loaded.engine)}
    asked = [*range(4)] * 3
    with ThreadPoolExecutor(12) as threads:
        assert list(threads.map(lambda n: _asked(llms[n]), asked)) == [alone[n] for n in asked]
    assert _asked(pool.llm(max_new_tokens=400)) == _asked(
        LoraLLM(base_model=str(tiny_llama), max_new_tokens=400)
    )
    assert [llm.reads_twice for llm in llms] == [False, True, False, True]
    assert [llm.max_new_tokens for llm in llms] == [600, 602, 604, 606]


def test_awaited_calls_and_streams_of_several_adapters_run_together(
    pool: AdapterPool, folders: list[Path], alone: list[str]
) -> None:
    llms = [pool.llm(folder) for folder in folders]

    async def streamed(llm: LoraLLM) -> str:
        stream = await llm.astream_structured_predict(Song, PROMPT, thing="a song")
        parts: list[Any] = [part async for part in stream]
        return str(parts[-1].model_dump_json())

    async def asked(llm: LoraLLM) -> str:
        answer = await llm.astructured_predict(Song, PROMPT, thing="a song")
        return answer.model_dump_json()

    async def all_of_them() -> list[str]:
        return await asyncio.gather(*(way(llm) for llm in llms for way in (asked, streamed)))

    assert asyncio.run(all_of_them()) == [answer for answer in alone for _ in range(2)]


def test_answers_of_a_pool_have_their_trust(pool: AdapterPool, folders: list[Path]) -> None:
    mine, own = pool.llm(folders[0]), LoraLLM.from_adapter(folders[0])
    found, expected = (trust_of(llm.structured_predict(Song, PROMPT, thing="x")) for llm in (mine, own))
    assert found is not None
    assert expected is not None
    assert [field.path for field in found.fields] == [field.path for field in expected.fields]
    assert found.probability == pytest.approx(expected.probability, rel=1e-3)


def test_adapters_beyond_the_limit_are_unloaded_and_loaded_again_by_their_next_call(
    tiny_llama: Path, folders: list[Path], alone: list[str]
) -> None:
    pool = AdapterPool(tiny_llama, limit_bytes=1)
    llms = [pool.llm(folder) for folder in folders]
    assert pool.loaded == [folders[3]]
    assert [_asked(llm) for llm in llms] == alone
    assert pool.loaded == [folders[3]]


def test_unloading_while_calls_run_changes_no_answer(
    pool: AdapterPool, folders: list[Path], alone: list[str]
) -> None:
    llms, ended = [pool.llm(folder) for folder in folders], threading.Event()

    def unload() -> None:
        while not ended.wait(0.002):
            for folder in folders:
                pool.unload(folder)

    unloading = threading.Thread(target=unload)
    unloading.start()
    try:
        with ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(lambda n: _asked(llms[n % 4]), range(16)))
    finally:
        ended.set()
        unloading.join()
    assert answers == [alone[n % 4] for n in range(16)]
    pool.unload(folders[0].parent)
    assert pool.loaded == []


def test_an_adapter_s_memory_is_free_once_its_last_call_has_ended(
    pool: AdapterPool, folders: list[Path]
) -> None:
    llm = pool.llm(folders[0])
    weights = weakref.ref(llm._loaded.adapter)
    answering = llm.stream_chat([ChatMessage(content="Hello")], max_new_tokens=5)
    next(answering)
    pool.unload(folders[0])
    assert weights() is not None
    assert list(answering)
    while llm._loaded.engine._thread is not None:
        threading.Event().wait(0.001)
    del answering
    gc.collect()
    assert weights() is None


def test_an_adapter_that_was_replaced_after_unloading_is_refused(
    pool: AdapterPool, folders: list[Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(folders[0], tmp_path / "adapter"))
    llm, card = pool.llm(folder), read_card(folder)
    first = _asked(llm)
    tensors = {name: weight * 2 for name, weight in load((folder / WEIGHTS).read_bytes()).items()}
    save_file(tensors, folder / WEIGHTS)
    write_card(folder, card, {name: file_hash(folder / name) for name in (WEIGHTS, ADAPTER_CONFIG)})
    assert _asked(llm) == first, "still in memory"
    pool.unload(folder)
    with pytest.raises(ConfigurationError, match="is another adapter than when its LLM was made"):
        _asked(llm)
    assert _asked(pool.llm(folder)) != first
    shutil.rmtree(folder)
    pool.unload(folder)
    assert pool.loaded == []


def test_what_is_wrong_with_an_adapter_is_told_when_its_llm_is_made(
    pool: AdapterPool, folders: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match=r"batch_size: of the pool"):
        pool.llm(folders[0], batch_size=2)
    other = tiny.save("llama", tmp_path / "other", seed=1)
    with pytest.raises(ConfigurationError, match="differs in"):
        pool.llm(random_adapters.save(other, tmp_path / "adapter", seed=0))
    quantised = Path(shutil.copytree(folders[0], tmp_path / "quantised"))
    card = read_card(quantised)
    write_card(quantised, card.model_copy(update={"quantization": "nf4"}), card.files)
    with pytest.raises(
        ConfigurationError, match="was trained with quantization='nf4', and this pool has None"
    ):
        pool.llm(quantised)


def test_a_copy_shares_the_pool_and_a_pickled_one_is_an_llm_of_its_own(
    pool: AdapterPool, folders: list[Path], alone: list[str]
) -> None:
    llm = pool.llm(folders[1])
    assert llm.model_copy(deep=True)._loaded is llm._loaded
    copied = pickle.loads(pickle.dumps(llm))
    assert _asked(copied) == alone[1]
    assert copied._loaded is LoraLLM.from_adapter(folders[1])._loaded


@pytest.mark.slow
def test_a_thousand_loads_and_unloads_leave_no_memory_behind(pool: AdapterPool, folders: list[Path]) -> None:
    peaks = list[int]()
    for n in range(1000):
        llm = pool.llm(folders[n % 4])
        llm.complete("Hello", max_new_tokens=1)
        pool.unload(folders[n % 4])
        if n % 100 == 99:
            gc.collect()
            peaks.append(peak_memory() or 0)
    assert peaks[-1] - peaks[1] < 8 * 2**20
