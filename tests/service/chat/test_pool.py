"""Models are loaded once, stay while they are used, and leave memory when there are too many."""

from __future__ import annotations

import asyncio
import gc
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from llama_index_finetune_structured.service import pool as pool_module
from llama_index_finetune_structured.service.errors import ApiError
from llama_index_finetune_structured.service.models import ServedModel
from llama_index_finetune_structured.service.pool import ModelPool
from tests.service.chat.chat_server import scaled_adapter


def served(name: str, base: Path, adapter: Path | None = None) -> ServedModel:
    return ServedModel(name, str(base), adapter, 0, "local")


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The models that were really loaded."""
    seen = list[Any]()
    load = pool_module._loaded

    def noted(bases: Any, base: str, adapter: Path | None, options: Any) -> Any:
        seen.append(adapter)
        return load(bases, base, adapter, options)

    monkeypatch.setattr(pool_module, "_loaded", noted)
    return seen


@pytest.fixture(scope="module")
def models(
    colour_base: Path, colour_adapter: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[ServedModel]:
    folder = tmp_path_factory.mktemp("adapters")
    adapters = [scaled_adapter(colour_adapter, folder / str(n), n + 1) for n in range(3)]
    return [served(f"model-{n}", colour_base, adapter) for n, adapter in enumerate(adapters)]


async def test_first_requests_that_come_together_load_once(
    loads: list[Any], models: list[ServedModel]
) -> None:
    pool = ModelPool()
    leases = await asyncio.gather(*(pool.lease(models[0]) for _ in range(5)))
    assert len({id(lease.__enter__()) for lease in leases}) == 1
    assert len(loads) == 1
    for lease in leases:
        lease.__exit__()


async def test_the_least_recently_used_is_unloaded_and_its_memory_is_free(models: list[ServedModel]) -> None:
    pool = ModelPool(most_loaded=2)
    gone = None
    for model in (models[0], models[1], models[0]):
        with await pool.lease(model) as llm:
            gone = weakref.ref(llm._loaded.adapter) if model is models[1] else gone
    del llm
    with await pool.lease(models[2]):
        assert [adapter for _, adapter in pool.loaded] == [models[0].adapter, models[2].adapter]
    gc.collect()
    assert gone is not None
    assert gone() is None


async def test_a_model_in_use_stays_and_who_comes_later_waits_behind_who_came_first(
    models: list[ServedModel],
) -> None:
    pool = ModelPool(most_loaded=1)
    order = list[str]()

    async def use(model: ServedModel) -> None:
        with await pool.lease(model):
            order.append(model.name)
            await asyncio.sleep(0)

    with await pool.lease(models[0]) as llm:
        other = asyncio.create_task(use(models[1]))
        await asyncio.sleep(0.05)
        again = asyncio.create_task(use(models[0]))
        await asyncio.sleep(0.05)
        assert order == []
        assert llm.complete("Hello", max_tokens=1).text is not None
    await asyncio.gather(other, again)
    assert order == ["model-1", "model-0"], "a busy model keeps no other one out"


async def test_who_gives_up_leaves_no_place_behind(models: list[ServedModel]) -> None:
    pool = ModelPool(most_loaded=1)
    giving_up = asyncio.create_task(pool.lease(models[0]))
    await asyncio.sleep(0)
    giving_up.cancel()
    with suppress(asyncio.CancelledError):
        await giving_up
    for model in models:
        with await pool.lease(model):
            pass
    assert [adapter for _, adapter in pool.loaded] == [models[-1].adapter]


async def test_a_model_that_cannot_be_loaded_is_told_to_all_and_tried_again(
    loads: list[Any], colour_base: Path, tmp_path: Path, colour_adapter: Path
) -> None:
    pool, model = ModelPool(), served("late", colour_base, tmp_path / "late")
    failures = await asyncio.gather(*(pool.lease(model) for _ in range(3)), return_exceptions=True)
    assert [error.code for error in failures if isinstance(error, ApiError)] == ["model_not_loaded"] * 3
    assert len(loads) == 1
    scaled_adapter(colour_adapter, tmp_path / "late", 1)
    with await pool.lease(model):
        assert len(loads) == 2


async def test_a_deleted_model_leaves_memory_with_the_next_one_that_is_loaded(
    models: list[ServedModel], colour_base: Path, colour_adapter: Path, tmp_path: Path
) -> None:
    pool = ModelPool()
    deleted = served("deleted", colour_base, scaled_adapter(colour_adapter, tmp_path / "a", 0.5))
    with await pool.lease(deleted):
        pass
    (tmp_path / "a").rename(tmp_path / "b")
    with await pool.lease(models[0]):
        assert [adapter for _, adapter in pool.loaded] == [models[0].adapter]
