"""Batches: every row once, rows with a common prefix together, the same order for the same seed."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from llama_index_finetune_structured.local.model.prompts import TokenRow
from llama_index_finetune_structured.local.train.batches import batches
from llama_index_finetune_structured.local.train.packing import pack

_tokens = st.lists(st.integers(2, 4), min_size=1, max_size=12).map(tuple)
_rows = st.lists(st.builds(TokenRow, _tokens, _tokens), min_size=1, max_size=40)
SYSTEM = tuple(range(100, 150))


def _questions(chunks: int, each: int) -> list[TokenRow]:
    """Rows of one system prompt, ``chunks`` chunks of 80 tokens, and ``each`` questions about every chunk."""
    return [
        TokenRow((*SYSTEM, *([1000 + chunk] * 80), 2000 + question, 5), (7, 8))
        for question in range(each)
        for chunk in range(chunks)
    ]


@given(rows=_rows, size=st.integers(1, 9), seed=st.text(max_size=3))
def test_every_row_stands_in_one_batch_and_only_the_last_is_short(
    rows: list[TokenRow], size: int, seed: str
) -> None:
    made = batches(rows, size, seed=seed)
    assert Counter(row for batch in made for row in batch) == Counter(rows)
    assert [len(batch) for batch in made[:-1]] == [size] * (len(made) - 1)
    assert made == batches(rows, size, seed=seed)


def test_questions_about_one_chunk_stand_together() -> None:
    made = batches(_questions(chunks=6, each=8), 8, seed="0")
    assert [len({row.prompt[60] for row in batch}) for batch in made] == [1] * 6
    assert len(pack(made[0]).ids) < 50 + 80 + 8 * 4


def test_chunks_with_fewer_questions_than_a_batch_are_kept_whole() -> None:
    made = batches(_questions(chunks=6, each=4), 8, seed="0")
    assert [len({row.prompt[60] for row in batch}) for batch in made] == [2] * 3


def test_rows_that_share_only_the_system_prompt_are_shuffled() -> None:
    rows = [TokenRow((*SYSTEM, *([n] * 30)), (7,)) for n in range(200)]
    first, second = batches(rows, 4, seed="0"), batches(rows, 4, seed="1")
    assert first != second
    neighbours = sum(abs(a.prompt[-1] - b.prompt[-1]) == 1 for batch in first for a, b in pairwise(batch))
    assert neighbours < 15
