"""The prefix cache returns what was added, stores shared prefixes once, and stays within its limit."""

from __future__ import annotations

from functools import partial

import torch
from hypothesis import given
from hypothesis import strategies as st

from llama_index_finetune_structured.local.generate.kv_cache import KeyValues
from llama_index_finetune_structured.local.generate.prefix_cache import PrefixCache

_TOKEN_BYTES = 2 * 4 * 2  # keys and values of one layer, two numbers each
_prompts = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12).map(tuple), max_size=25)


def _of(prompt: tuple[int, ...], start: int, stop: int) -> KeyValues:
    """Keys and values that depend on all tokens up to theirs, as a causal model's do."""
    numbers = [float(hash(prompt[: n + 1]) % 10_007) for n in range(start, stop)]
    keys = torch.tensor(numbers)[:, None, None].expand(-1, 1, 2).clone()
    return [(keys, -keys)]


def _check_and_measure(cache: PrefixCache, prompt: tuple[int, ...]) -> int:
    """Length of the cached prefix, after checking its keys and values."""
    pieces = cache.find(prompt)
    length = sum(piece[0][0].shape[0] for piece in pieces)
    for n, part in enumerate(_of(prompt, 0, length)[0]):
        cached = torch.cat([piece[0][n] for piece in pieces]) if pieces else part[:0]
        assert torch.equal(cached, part)
    return length


@given(prompts=_prompts)
def test_the_longest_cached_prefix_is_found_with_its_keys_and_values(prompts: list[tuple[int, ...]]) -> None:
    cache = PrefixCache()
    for n, prompt in enumerate(prompts):
        starts = {other[:k] for other in prompts[:n] for k in range(len(other) + 1)}
        longest = max((k for k in range(len(prompt)) if prompt[:k] in starts), default=0)
        assert _check_and_measure(cache, prompt) == longest
        cache.add(prompt, partial(_of, prompt))
    distinct_prefixes = {other[:k] for other in prompts for k in range(1, len(other) + 1)}
    assert cache.bytes == _TOKEN_BYTES * len(distinct_prefixes)


@given(prompts=_prompts, limit=st.integers(0, 40))
def test_the_limit_holds_and_what_is_left_is_right(prompts: list[tuple[int, ...]], limit: int) -> None:
    cache = PrefixCache(limit * _TOKEN_BYTES)
    for prompt in prompts:
        _check_and_measure(cache, prompt)
        cache.add(prompt, partial(_of, prompt))
        assert cache.bytes <= limit * _TOKEN_BYTES


def test_the_least_recently_used_prefix_is_evicted_first() -> None:
    cache = PrefixCache(10 * _TOKEN_BYTES)
    for first in (1, 2):
        prompt = (first,) * 4
        cache.add(prompt, partial(_of, prompt))
    assert _check_and_measure(cache, (1,) * 5) == 4
    cache.add((3,) * 4, partial(_of, (3,) * 4))
    assert [_check_and_measure(cache, (first,) * 5) for first in (1, 2, 3)] == [4, 0, 4]
