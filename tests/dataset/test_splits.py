"""Splitting by hash: grouped, seeded, stable when data grows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_index_finetune_structured import FinetuneDataset
from llama_index_finetune_structured.errors import ConfigurationError, DatasetError
from llama_index_finetune_structured.example import Source


def numbered(count: int, rows_a_document: int = 1) -> FinetuneDataset:
    pairs = [(f"question {n}", f"answer {n}") for n in range(count)]
    return FinetuneDataset.from_pairs(
        pairs, document_ids=[f"doc {n // rows_a_document}" for n in range(count)]
    )


def queries(data: FinetuneDataset) -> set[str | None]:
    return {e.query for e in data}


def test_the_share_is_met_and_every_row_lands_once() -> None:
    train, validation = numbered(2000).split()
    assert len(train) + len(validation) == 2000
    assert len(train) == pytest.approx(1400, abs=80)
    assert {e.split for e in train} == {"train"}
    assert {e.split for e in validation} == {"validation"}


def test_a_split_is_the_same_again_and_another_with_another_seed() -> None:
    data = numbered(100)
    assert queries(data.split(0.5, seed=3)[0]) == queries(data.split(0.5, seed=3)[0])
    assert queries(data.split(0.5, seed=3)[0]) != queries(data.split(0.5, seed=4)[0])


@given(st.integers(20, 120), st.integers(1, 120), st.integers(0, 5), st.randoms())
def test_growing_and_shuffled_data_moves_no_row(count: int, more: int, seed: int, random) -> None:  # type: ignore[no-untyped-def]
    small, large = numbered(count), list(numbered(count + more))
    random.shuffle(large)
    train, validation = small.split(0.5, seed=seed)
    train_later, validation_later = FinetuneDataset(large).split(0.5, seed=seed)
    assert queries(train) <= queries(train_later)
    assert queries(validation) <= queries(validation_later)


def test_a_document_stays_on_one_side() -> None:
    train, validation = numbered(400, rows_a_document=5).split(0.7, group_by="document")
    assert not {e.document_id for e in train} & {e.document_id for e in validation}
    assert len(validation) > 50


def test_a_callable_names_the_group() -> None:
    train, validation = numbered(100).split(0.5, group_by=lambda e: str(e.query)[-1])
    assert not {str(q)[-1] for q in queries(train)} & {str(q)[-1] for q in queries(validation)}


def test_rows_of_one_question_are_never_parted() -> None:
    data = FinetuneDataset.from_pairs([(f"q{n % 30}", f"a{n}") for n in range(300)])
    train, validation = data.split(0.5)
    assert not queries(train) & queries(validation)


def test_rows_without_a_query_are_grouped_by_their_messages() -> None:
    rows = [e.model_copy(update={"query": None}) for e in numbered(40)]
    train, validation = FinetuneDataset([*rows, *rows]).split(0.5)
    assert not {e.id for e in train} & {e.id for e in validation}


@given(st.floats(0.001, 0.999), st.integers(0, 50))
def test_neither_side_is_ever_empty(fraction: float, seed: int) -> None:
    train, validation = numbered(2).split(fraction, seed=seed)
    assert (len(train), len(validation)) == (1, 1)


def test_a_retrieved_document_stands_in_for_a_missing_one() -> None:
    rows = [
        e.model_copy(update={"document_id": None, "sources": (Source(node_id="n", document_id=f"d{n % 8}"),)})
        for n, e in enumerate(numbered(80))
    ]
    train, validation = FinetuneDataset(rows).split(0.5, group_by="document")
    assert not {e.sources[0].document_id for e in train} & {e.sources[0].document_id for e in validation}


def test_what_cannot_be_split_is_an_error_with_a_fix() -> None:
    with pytest.raises(DatasetError, match="empty"):
        FinetuneDataset([]).split()
    with pytest.raises(DatasetError, match=r"one document.*group_by=None"):
        numbered(10, rows_a_document=10).split(group_by="document")
    with pytest.raises(DatasetError, match="ask the same question"):
        numbered(1).split()
    with pytest.raises(DatasetError, match="in one group"):
        numbered(10).split(group_by=lambda _: "same")
    with pytest.raises(DatasetError, match=r"10 of 10 examples name no document.*row 0"):
        FinetuneDataset.from_pairs([(f"q{n}", "a") for n in range(10)]).split(group_by="document")
    with pytest.raises(DatasetError, match="returned int for row 0"):
        numbered(10).split(group_by=lambda _: 1)  # type: ignore[arg-type,return-value]
    with pytest.raises(ConfigurationError, match="group_by"):
        numbered(10).split(group_by="documents")  # type: ignore[arg-type]
    for fraction in (0, 1, 70, -0.1):
        with pytest.raises(ConfigurationError, match="fraction"):
            numbered(10).split(fraction)
