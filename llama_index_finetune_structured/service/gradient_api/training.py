"""Steps of Gradient's adapters, one after the other, on the bases in memory."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeAlias
from weakref import WeakKeyDictionary

from ...errors import DatasetError
from ...local.model.base_models import BaseModelFiles, context_window, resolve, text_config
from ...local.model.devices import release_idle_threads
from ...local.train.recipe import learning_rate_of
from ..database import Record
from ..errors import ApiError
from ..json_log import log_failure
from ..keys import ApiKey
from ..pool import ModelPool
from ..settings import ServiceSettings
from .adapters import GradientAdapters, unknown_adapter
from .requests import CreateModel, Sample
from .samples import training_samples

if TYPE_CHECKING:
    from ...llms.lora import LoraLLM
    from .trainer import StepResult, StepTrainer

__all__ = ["GradientTraining", "lora_settings"]

_MOST_RANK = 32  # the protocol's
_CONSTANT_SHARE = (
    0.5  # of the recipe's rate, which is the highest of a run: the mean of a cosine is half of that
)
_MOST_TRAINERS = (
    4  # chosen: adapters of a base that are trained by turns, each with its weights and optimizer
)
_Trainers: TypeAlias = "OrderedDict[str, StepTrainer]"  # by adapter, the least recently used first


def lora_settings(settings: ServiceSettings, base: str, asked: CreateModel) -> dict[str, Any]:
    """What is decided of a new adapter, as ``StepLora``. Raises ConfigurationError where the base cannot be read."""
    training = settings.training
    rank = asked.rank or min(training.rank, _MOST_RANK)
    rate = asked.learning_rate or training.learning_rate
    if rate is None:
        width: int = text_config(resolve(base)).hidden_size
        rate = _CONSTANT_SHARE * learning_rate_of(width, 1)
    return {
        "rank": rank,
        "alpha": training.alpha or 2 * rank,
        "upper_layers": training.upper_layers,
        "learning_rate": rate,
        "seed": training.seed,
    }


class GradientTraining:
    """Takes the steps that requests ask for, in the order in which they came. Used by one event loop.

    A step is the adapter's once the database names its version; until then the version before serves.
    """

    def __init__(self, settings: ServiceSettings, adapters: GradientAdapters, pool: ModelPool) -> None:
        self._settings, self._adapters = settings, adapters
        # The weights of a vLLM server cannot be trained: then steps have a base of their own.
        self._pool = pool if settings.backend == "own" else ModelPool(most_loaded=1)
        self._steps = ThreadPoolExecutor(1, "gradient-steps")
        # A base that leaves the pool takes its trainers with it, which hold its weights.
        self._trainers: WeakKeyDictionary[Any, _Trainers] = WeakKeyDictionary()
        self._left = defaultdict[str, set["Future[StepResult]"]](set)
        self._unfinished = Counter[str]()  # steps by the key that asked for them
        self._bases: dict[str, BaseModelFiles] = {}

    async def fine_tune(self, adapter_id: str, key: ApiKey, samples: Sequence[Sample]) -> StepResult:
        """Take one step. Cancelled, it is not taken, unless it has begun: then it is finished.

        Raises ApiError: 404 for an unknown adapter, 422 for samples that cannot be trained on and where the loss is not
        finite (the adapter is then as it was), 429 where too many steps wait, of all keys or of this one.
        """
        self._require_turn(key)
        owner = key.id
        self._unfinished[owner] += 1
        try:
            adapter = await asyncio.to_thread(self._adapters.find, adapter_id, owner)
            lease = await self._pool.lease(self._adapters.base(adapter))
            loop = asyncio.get_running_loop()
            step = self._steps.submit(self._step, lease.__enter__(), adapter_id, owner, samples)
            step.add_done_callback(lambda _: loop.call_soon_threadsafe(lease.__exit__))
            try:
                return await asyncio.wrap_future(step)
            except asyncio.CancelledError:
                if not step.cancel():
                    self._leave(adapter_id, step, loop)
                raise
        finally:
            self._unfinished[owner] -= 1
            if not self._unfinished[owner]:
                del self._unfinished[owner]

    def _require_turn(self, key: ApiKey) -> None:
        """Raise ApiError (429) where steps may not wait. Those of a key are limited as its jobs are."""
        own = self._unfinished[key.id]
        if own >= key.max_waiting_jobs:
            why = f"This key has {own} steps that have not ended, as many as it may have: wait for one."
        elif self._unfinished.total() >= self._settings.max_waiting_calls:
            why = "The server is busy: too many steps wait. Try again later."
        else:
            return
        raise ApiError(429, why, code="rate_limit_exceeded", headers={"Retry-After": "10"})

    def _leave(self, adapter_id: str, step: Future[StepResult], loop: asyncio.AbstractEventLoop) -> None:
        left = self._left[adapter_id]
        left.add(step)

        def forget() -> None:
            left.discard(step)
            if not left:
                self._left.pop(adapter_id, None)

        step.add_done_callback(lambda _: loop.call_soon_threadsafe(forget))

    async def settled(self, adapter_id: str) -> None:
        """Wait for a step whose client has left.

        A client that lost its reply asks for the adapter's update time: it must not ask before the step is finished,
        and send the samples again.
        """
        if left := self._left.get(adapter_id):
            await asyncio.gather(*map(asyncio.wrap_future, left), return_exceptions=True)

    def close(self) -> None:
        """Finish the step at work; those that wait are not taken."""
        self._steps.shutdown(wait=True, cancel_futures=True)
        if self._settings.backend != "own":
            self._pool.close()

    def _step(self, llm: LoraLLM, adapter_id: str, owner: str, samples: Sequence[Sample]) -> StepResult:
        from ...local.train.out_of_memory import is_out_of_memory, release_memory
        from .trainer import NotFiniteError

        adapter = self._adapters.find(adapter_id, owner)
        try:
            return self._taken(llm, adapter, samples)
        except ApiError:
            raise
        except NotFiniteError as error:
            raise ApiError(
                422, f"The step was not taken: {error}. The adapter is as it was.", type="nanLoss"
            ) from error
        except DatasetError as error:
            raise ApiError(422, str(error), type="unprocessableContent") from error
        except Exception as error:
            self._adapters.find(adapter_id, owner)  # deleted meanwhile, its folder is gone
            if is_out_of_memory(error):
                release_memory(error)
                message = "The memory does not suffice for a step on these samples: send shorter ones."
                raise ApiError(422, message, type="unprocessableContent") from error
            log_failure(error, adapter_id)
            raise ApiError(
                500, "The step could not be taken; the server's log says why.", type="failed"
            ) from error
        finally:
            release_idle_threads()

    def _taken(self, llm: LoraLLM, adapter: Record, samples: Sequence[Sample]) -> StepResult:
        model, training = llm._loaded, self._settings.training
        base = self._base(adapter.base_path)
        most_tokens = min(training.max_length or context_window(base), context_window(base))
        rows = training_samples(samples, model.tokenizer, model.stop_id, most_tokens)
        trainers = self._trainers.setdefault(model.engine.model, OrderedDict())
        trainer = trainers.pop(adapter.id, None)  # one that fails is not used again
        if trainer is None or trainer.steps != adapter.steps:
            if not all(other.shares_base for other in trainers.values()):
                trainers.clear()  # one base beside the served one, not several
            trainer = self._opened(llm, adapter)
        result = trainer.step(rows)
        trainer.save(self._adapters.version(adapter.id, trainer.steps))
        if not self._adapters.commit(adapter):
            raise unknown_adapter(adapter.id)
        trainers[adapter.id] = trainer
        while len(trainers) > _MOST_TRAINERS:
            trainers.popitem(last=False)
        return result

    def _base(self, path: str) -> BaseModelFiles:
        """The base of a path or hub id, which is looked up once, as it is loaded once."""
        if path not in self._bases:
            self._bases[path] = resolve(path)
        return self._bases[path]

    def _opened(self, llm: LoraLLM, adapter: Record) -> StepTrainer:
        from .trainer import StepLora, StepTrainer

        training = self._settings.training
        return StepTrainer(
            llm._loaded.engine.model,
            llm._loaded.tokenizer,
            self._base(adapter.base_path),
            StepLora(**adapter.lora),
            self._adapters.version(adapter.id, adapter.steps) if adapter.steps else None,
            piece_tokens=training.piece_tokens,
            checkpointed=bool(training.checkpoint_layers),
        )
