"""Requests of several adapters of one base share batches, and each is answered as by its adapter alone."""

from __future__ import annotations

import gc
import random
import threading
import time
import weakref
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llama_index_finetune_structured.local.generate.decoders import BatchDecoder, PaddedDecoder
from llama_index_finetune_structured.local.generate.engine import GenerationEngine
from llama_index_finetune_structured.local.generate.request import GenerationRequest
from llama_index_finetune_structured.local.model.adapter import attach_adapter, merge_adapter
from llama_index_finetune_structured.local.model.adapter_weights import AdapterWeights, read_adapter_weights
from llama_index_finetune_structured.local.model.base_models import load_model, resolve
from llama_index_finetune_structured.local.model.quantization import Quantization
from llama_index_finetune_structured.local.model.reading import structure
from tests import random_adapters, tiny
from tests.local import families

TOKENS = 16
_DRAW = random.Random(0)
_SHARED = tuple(_DRAW.randrange(2, 258) for _ in range(30))
PROMPTS = [
    (*start, *(_DRAW.randrange(2, 258) for _ in range(own)))
    for start, own in ((_SHARED, 10), (_SHARED, 3), ((), 25), ((), 7))
]


def _engine(model: Any, batch_size: int = 4) -> GenerationEngine:
    return GenerationEngine(model, stop_ids=[1], pad_id=1, batch_size=batch_size)


@dataclass
class Beside:
    """An engine over a base, adapters of it by number (None: the base alone), and what each answers alone."""

    engine: GenerationEngine
    weights: dict[int | None, AdapterWeights | None]
    alone: dict[tuple[int | None, int], tuple[int, ...]] = field(default_factory=dict)

    def request(self, adapter: int | None, prompt: int) -> GenerationRequest:
        return GenerationRequest(PROMPTS[prompt], TOKENS, adapter=self.weights[adapter])

    def answers(self, asked: list[tuple[int | None, int]]) -> list[tuple[int, ...]]:
        futures = [self.engine.submit(self.request(*each)) for each in asked]
        return [future.result().tokens for future in futures]


def _beside(base: Path, folders: list[Path], quantization: Quantization | None = None) -> Beside:
    files = resolve(base)

    def load() -> Any:
        return load_model(files, dtype=torch.float32, quantization=quantization)

    model, skeleton = load(), structure(files.path)
    weights: dict[int | None, AdapterWeights | None] = {None: None}
    made = Beside(_engine(model), weights)
    numbered: list[tuple[int | None, Path | None]] = [(None, None), *enumerate(folders)]
    for number, folder in numbered:
        own = load()
        if folder is not None:
            weights[number] = read_adapter_weights(folder, model, skeleton)
            merged = quantization is None
            own = merge_adapter(own, folder) if merged else attach_adapter(own, folder).get_base_model()
        engine = _engine(own)
        for prompt, ids in enumerate(PROMPTS):
            made.alone[number, prompt] = engine.submit(GenerationRequest(ids, TOKENS)).result().tokens
    return made


def _adapters(base: Path, folder: Path, count: int, **card: Any) -> list[Path]:
    """Adapters of different ranks, every third one of the upper block alone."""
    return [
        random_adapters.save(
            base,
            folder / f"adapter-{n}",
            seed=n,
            rank=(1, 2, 4, 8)[n % 4],
            upper_layers=1 if n % 3 == 2 else None,
            **card,
        )
        for n in range(count)
    ]


@pytest.fixture(scope="module")
def eight(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Beside:
    made = _beside(tiny_llama, _adapters(tiny_llama, tmp_path_factory.mktemp("eight"), 8))
    assert len({made.alone[number, 0] for number in made.weights}) == 9, "all answer in their own way"
    return made


ADAPTERS = st.one_of(st.none(), st.integers(0, 7))
# Of each request: adapter, prompt, after how many tokens of the one before it is submitted, and at which of its own it
# is cancelled (0: never, -1: before it joins).
PLANS = st.lists(
    st.tuples(ADAPTERS, st.integers(0, 3), st.integers(0, 6), st.sampled_from([0, 0, 1, 5, -1])),
    min_size=2,
    max_size=12,
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(plan=PLANS)
def test_answers_are_those_of_the_adapter_alone_however_requests_join_and_leave(
    eight: Beside, plan: list[tuple[int | None, int, int, int]]
) -> None:
    requests = [eight.request(adapter, prompt) for adapter, prompt, *_ in plan]
    waiting, taking = set(range(len(plan))), threading.Lock()

    def submit(n: int) -> None:
        with taking:
            is_next = n in waiting
            waiting.discard(n)
        if is_next:
            eight.engine.submit(requests[n])

    def follow(n: int, after: int, cancel: int) -> None:
        seen = list[int]()

        def on_token(token: int) -> None:
            seen.append(token)
            if len(seen) == after:
                submit(n + 1)
            if len(seen) == cancel:
                requests[n].cancelled = True

        requests[n].on_token = on_token
        requests[n].cancelled = cancel < 0

    for n, (_, _, _, cancel) in enumerate(plan):
        follow(n, plan[n + 1][2] if n + 1 < len(plan) else 0, cancel)
    for n, (_, _, after, _) in enumerate(plan):
        if not after:
            submit(n)
    submit(0)
    for n, (adapter, prompt, _, cancel) in enumerate(plan):
        submit(n)  # where the one before ended earlier than it was to be submitted
        if cancel < 0:
            with pytest.raises(CancelledError):
                requests[n].future.result(timeout=60)
            submit(n + 1)
            continue
        answer = requests[n].future.result(timeout=60)
        expected = eight.alone[adapter, prompt]
        assert answer.tokens == (expected[: len(answer.tokens)] if cancel else expected)


def test_requests_of_eight_adapters_and_the_base_share_forwards(eight: Beside) -> None:
    asked: list[tuple[int | None, int]] = [(number, 0) for number in eight.weights]
    forwards = list[int]()
    hook = eight.engine.model.register_forward_pre_hook(lambda *_: forwards.append(1))
    try:
        assert eight.answers(asked) == [eight.alone[each] for each in asked]
    finally:
        hook.remove()
    assert len(forwards) < 9 * TOKENS / 2, "nine prompts, and then a forward a token for four"


def test_a_prompt_cached_with_one_adapter_serves_only_that_adapter(eight: Beside) -> None:
    engine, prompt, shapes = eight.engine, PROMPTS[0][::-1], list[int]()
    hook = engine.model.register_forward_pre_hook(
        lambda _model, _args, kwargs: shapes.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    try:
        for number in (0, 1, None, 0, 1, None):
            engine.submit(GenerationRequest(prompt, 1, adapter=eight.weights[number])).result()
    finally:
        hook.remove()
    assert shapes == [len(prompt)] * 3 + [1] * 3


def test_what_was_cached_with_an_adapter_is_freed_with_it(tiny_llama: Path, tmp_path: Path) -> None:
    model = load_model(resolve(tiny_llama), dtype=torch.float32)
    engine, skeleton = _engine(model), structure(tiny_llama)
    folder = random_adapters.save(tiny_llama, tmp_path / "adapter", seed=0)
    engine.submit(GenerationRequest(PROMPTS[0], 2)).result()
    assert isinstance(engine._decoder, BatchDecoder)
    before = engine._decoder._prefixes.bytes
    weights = read_adapter_weights(folder, model, skeleton)
    gone = weakref.ref(weights)
    engine.submit(GenerationRequest(PROMPTS[0], 2, adapter=weights)).result()
    while engine._thread is not None:
        time.sleep(0.001)
    assert engine._decoder._prefixes.bytes == 2 * before
    del weights
    gc.collect()
    assert gone() is None, "nothing but the caller keeps an adapter that no request uses"
    engine.drop_unloaded()
    assert engine._decoder._prefixes.bytes == before


@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:.*MoE|.*experts:UserWarning")
@pytest.mark.parametrize("family", ["mixtral", "mamba2", "gpt2"])
def test_models_of_other_kinds_answer_as_each_adapter_alone(family: str, tmp_path: Path) -> None:
    """Stacked experts have a batch for each adapter, models with more state a padded one; GPT-2's layers are others."""
    base = families.save(family, tmp_path / "base")
    made = _beside(base, _adapters(base, tmp_path, 3))
    assert isinstance(made.engine._decoder, PaddedDecoder) == (family == "mamba2")
    assert [weights.rows for weights in made.weights.values() if weights] == [family != "mixtral"] * 3
    asked = [(number, prompt) for prompt in range(len(PROMPTS)) for number in made.weights]
    random.Random(0).shuffle(asked)
    assert made.answers(asked) == [made.alone[each] for each in asked]
    assert made.answers([(None, 0)]) == [made.alone[None, 0]], "the base is as it was"


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_over_a_quantised_base_answers_are_those_of_each_adapter_alone(
    quantization: Quantization, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    base = tiny.save("llama", tmp_path / "base")
    made = _beside(base, _adapters(base, tmp_path, 3, quantization=quantization), quantization)
    asked = [(number, prompt) for prompt in range(len(PROMPTS)) for number in made.weights]
    assert made.answers(asked) == [made.alone[each] for each in asked]


def test_an_adapter_that_needs_its_own_batch_does_not_keep_another_waiting_for_ever(tmp_path: Path) -> None:
    """Its requests follow one another without a gap; one of another adapter, in between, is not answered last."""
    base = families.save("mixtral", tmp_path / "base")
    model, skeleton = load_model(resolve(base), dtype=torch.float32), structure(base)
    first, second = (read_adapter_weights(folder, model, skeleton) for folder in _adapters(base, tmp_path, 2))
    engine, order = _engine(model, batch_size=2), list[str]()

    def request(name: str, adapter: AdapterWeights) -> GenerationRequest:
        made = GenerationRequest(PROMPTS[2], 3, adapter=adapter)
        made.future.add_done_callback(lambda _: order.append(name))
        return made

    chain, other = [request("first", first) for _ in range(8)], request("second", second)

    def submit(following: list[GenerationRequest], _token: int) -> None:
        while following:
            engine.submit(following.pop(0))

    for now, following in pairwise(chain):
        now.on_token = partial(submit, [following, other] if now is chain[0] else [following])
    engine.submit(chain[0])
    for each in [*chain, other]:
        each.future.result(timeout=60)
    assert order.index("second") < len(chain) - 1
