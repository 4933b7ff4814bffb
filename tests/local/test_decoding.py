"""Continuous batching, the prefix cache and speculative decoding change no token of an answer."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import llguidance
import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from llama_index_finetune_structured.local.generate.decoders import BatchDecoder
from llama_index_finetune_structured.local.generate.engine import GenerationEngine
from llama_index_finetune_structured.local.generate.grammar import AnswerGrammar, GrammarCache
from llama_index_finetune_structured.local.generate.kv_cache import KVCacheModel
from llama_index_finetune_structured.local.generate.ragged_attention import NewTokens, RaggedLayout
from llama_index_finetune_structured.local.generate.request import GenerationRequest, Sampling
from tests import tiny

STOP, PAD = 1, 1
KINDS = ["llama", "qwen2", "gemma2", "gpt2"]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "score": {"type": "number"},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 4},
    },
    "required": ["name", "score", "tags"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def grammar() -> AnswerGrammar:
    return GrammarCache(tiny.tokenizer(), vocabulary=258, stop_id=STOP).get(SCHEMA)


def _prompts(count: int, seed: int = 0) -> list[tuple[int, ...]]:
    """Prompts of different lengths; most share a prefix, some repeat a phrase."""
    draw = random.Random(seed)
    shared = tuple(draw.randrange(2, 258) for _ in range(70))
    word = tuple(draw.randrange(2, 258) for _ in range(5))
    prompts = []
    for n in range(count):
        own = tuple(draw.randrange(2, 258) for _ in range(draw.randrange(1, 40)))
        prompts.append((shared if n % 4 else ()) + own + word * (n % 3))
    return prompts


class _FullMask(LogitsProcessor):
    """Plain constrained decoding: the full mask for every token, from its own matcher, and the end inside the limit."""

    def __init__(self, grammar: AnswerGrammar, prompt: int, limit: int) -> None:
        self._state, self._prompt = grammar.start(limit), prompt

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if input_ids.shape[1] > self._prompt:
            self._state.append(int(input_ids[0, -1]))
        allowed = scores.masked_fill(~self._state.mask(), float("-inf"))
        token = self._state.within_limit(int(allowed.argmax()))
        return torch.full_like(scores, float("-inf")).index_fill(1, torch.tensor([token]), 0.0)


def _plainly(model: Any, prompt: tuple[int, ...], limit: int, grammar: AnswerGrammar | None) -> list[int]:
    """transformers' own greedy decoding of one row: no drafts, no prefix cache."""
    ids = torch.tensor([prompt])
    held = LogitsProcessorList([] if grammar is None else [_FullMask(grammar, len(prompt), limit)])
    with torch.inference_mode():
        answer = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=limit,
            do_sample=False,
            eos_token_id=STOP,
            pad_token_id=PAD,
            logits_processor=held,
        )[0, len(prompt) :].tolist()
    return answer[: answer.index(STOP)] if STOP in answer else answer


def _engine(model: Any, batch_size: int = 4) -> GenerationEngine:
    return GenerationEngine(model, stop_ids=[STOP], pad_id=PAD, batch_size=batch_size)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("constrained", [False, True])
def test_answers_are_those_of_plain_greedy_decoding(
    kind: str, constrained: bool, grammar: AnswerGrammar
) -> None:
    model = tiny.model(kind).eval()
    held = grammar if constrained else None
    expected = {prompt: _plainly(model, prompt, 200, held) for prompt in _prompts(7)}
    engine = _engine(model)
    assert isinstance(engine._decoder, BatchDecoder)
    for _ in range(2):  # the second time with every prompt in the prefix cache and every answer in the index
        futures = [engine.submit(GenerationRequest(prompt, 200, grammar=held)) for prompt in expected]
        assert [list(future.result().tokens) for future in futures] == list(expected.values())


class _Forwards:
    """Rows and tokens of each forward of a model."""

    def __init__(self, model: Any) -> None:
        self.shapes: list[tuple[int, int]] = []
        self._hook = model.register_forward_pre_hook(self._see, with_kwargs=True)

    def _see(self, _module: Any, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.shapes.append(tuple(kwargs["input_ids"].shape))

    @property
    def tokens(self) -> int:
        return sum(rows * tokens for rows, tokens in self.shapes)


@pytest.fixture
def model() -> Any:
    return tiny.model("llama").eval()


@pytest.fixture
def forwards(model: Any) -> Iterator[_Forwards]:
    seen = _Forwards(model)
    yield seen
    seen._hook.remove()


def test_a_repeated_answer_takes_far_fewer_forwards(
    model: Any, forwards: _Forwards, grammar: AnswerGrammar
) -> None:
    engine, prompt = _engine(model), _prompts(2)[1]
    forwards.shapes.clear()
    first = engine.submit(GenerationRequest(prompt, 200, grammar=grammar)).result()
    before = len(forwards.shapes)
    assert first.finish_reason == "stop"
    assert engine.submit(GenerationRequest(prompt, 200, grammar=grammar)).result() == first
    assert len(forwards.shapes) - before < len(first.tokens) / 3


def test_a_cached_prompt_is_not_computed_again(model: Any, forwards: _Forwards) -> None:
    engine, prompt = _engine(model), _prompts(2)[1]
    for _ in range(2):
        forwards.shapes.clear()
        engine.submit(GenerationRequest(prompt, 1)).result()
    assert forwards.shapes == [(1, 1)]


def test_a_prefix_that_different_prompts_share_is_computed_once(model: Any, forwards: _Forwards) -> None:
    engine = _engine(model)
    shared = tuple(range(2, 102))
    forwards.shapes.clear()
    futures = [engine.submit(GenerationRequest((*shared, 200 + n, 7), 1)) for n in range(4)]
    for future in futures:
        future.result()
    assert forwards.tokens == 102 + 3 * 2


def test_logits_after_a_cached_prefix_equal_those_without_the_cache(model: Any) -> None:
    slots, prompt = KVCacheModel(model), _prompts(2)[1]
    with torch.inference_mode():
        whole = slots.prefill(0, prompt, 0)
        pieces = [slots.save(0, 0, 30), slots.save(0, 30, 61)]
        slots.release()
        assert slots.load(2, pieces) == 61
        rest = slots.prefill(2, prompt, 61)
        plain = model(input_ids=torch.tensor([prompt]), position_ids=None, **_layout(prompt)).logits[0, -1]
    assert torch.allclose(whole, rest, atol=1e-5)
    assert torch.allclose(whole, plain, atol=1e-5)


def _layout(prompt: tuple[int, ...]) -> dict[str, Any]:
    """Keyword arguments of a forward without any cache: its keys are those of its own tokens."""
    return {"layout": RaggedLayout([NewTokens(0, [0], [prompt])], torch.device("cpu")), "use_cache": False}


def test_many_threads_at_once_get_the_answers_that_each_would_alone(model: Any) -> None:
    prompts = _prompts(24, seed=9)
    expected = [_plainly(model, prompt, 25, None) for prompt in prompts]
    engine = _engine(model, batch_size=3)

    def ask(n: int) -> list[int] | None:
        request = GenerationRequest(prompts[n], 25)
        if n % 5 == 0:
            request.on_token = lambda _: setattr(request, "cancelled", True)
        answer = [*engine.submit(request).result().tokens]
        return None if request.cancelled else answer

    with ThreadPoolExecutor(8) as pool:
        answers = [*pool.map(ask, range(24))]
    assert [a for a in answers if a is not None] == [e for n, e in enumerate(expected) if n % 5]


def test_a_schema_is_compiled_once_however_many_threads_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    cache, compiled = GrammarCache(tiny.tokenizer(), vocabulary=258, stop_id=STOP), []
    compile_one = cache._compile
    monkeypatch.setattr(cache, "_compile", lambda *args: compiled.append(1) or compile_one(*args))
    with ThreadPoolExecutor(8) as pool:
        grammars = {id(grammar) for grammar in pool.map(cache.get, [SCHEMA] * 16)}
    assert len(grammars) == len(compiled) == 1


def test_sampled_answers_share_batches_with_greedy_ones_and_a_seed_repeats_them(model: Any) -> None:
    engine, prompt = _engine(model), _prompts(2)[1]

    def ask(sampling: Sampling) -> Any:
        return engine.submit(GenerationRequest(prompt, 30, sampling))

    hot = Sampling(temperature=1.5, seed=3)
    greedy, first, second, other = (
        ask(s).result().tokens for s in (Sampling(), hot, hot, Sampling(temperature=1.5, seed=4))
    )
    together = [ask(s) for s in (hot, Sampling(), hot)]
    assert [answer.result().tokens for answer in together] == [first, greedy, first]
    assert first == second
    assert len({greedy, first, other}) == 3
    assert ask(Sampling(temperature=1.5, top_k=1)).result().tokens == greedy
    assert ask(Sampling(temperature=1.5, top_p=1e-6)).result().tokens == greedy


def test_the_check_of_one_token_agrees_with_the_full_mask(grammar: AnswerGrammar) -> None:
    draw = random.Random(5)
    for _ in range(20):
        state = grammar.start(10_000)
        for _ in range(60):
            allowed = state.mask()
            tried = [*draw.sample(range(258), 20), STOP]
            assert [state.allows(token) for token in tried] == allowed[tried].tolist()
            token = draw.choice(allowed.nonzero()[:, 0].tolist())
            state.append(token)
            if token == STOP:
                break


def test_a_model_with_more_state_than_keys_and_values_answers_in_padded_batches(
    grammar: AnswerGrammar,
) -> None:
    from transformers import AutoModelForCausalLM, Lfm2Config

    torch.manual_seed(0)
    config = Lfm2Config(
        vocab_size=258, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, layer_types=["conv", "full_attention"], pad_token_id=PAD, eos_token_id=STOP,
        bos_token_id=0,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).float().eval()
    prompts = _prompts(5)
    expected = [_plainly(model, prompt, 60, grammar) for prompt in prompts]
    engine = _engine(model)
    futures = [engine.submit(GenerationRequest(prompt, 60, grammar=grammar)) for prompt in prompts]
    assert [list(future.result().tokens) for future in futures] == expected


def test_the_version_of_llguidance_has_what_is_used() -> None:
    for name in ("validate_tokens", "deep_copy", "is_accepting", "consume_token"):
        assert hasattr(llguidance.LLMatcher, name)
