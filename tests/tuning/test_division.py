"""The rows of ``tune``: divided without leaks, and honest about what the held-out ones can tell."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from llama_index_finetune_structured import DatasetError, Example, FinetuneDataset
from llama_index_finetune_structured.example import Message, Source
from llama_index_finetune_structured.tuning.rows import DividedRows, precision_of

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
WORDS = [f"{first}{last}" for first in ("am", "be", "ce", "do") for last in ("ka", "li", "mo", "nu")]


class Answer(BaseModel):
    n: int


def _text(number: int) -> str:
    """A question of its own words for each number below 4096."""
    return " ".join(WORDS[number >> shift & 15] for shift in (0, 4, 8)) + f" {number}"


def _row(number: int, *, document: str | None = None, schema: bool = True, text: str = "") -> Example:
    return Example(
        messages=(Message(role="user", content=text or _text(number)),),
        answer=Message(role="assistant", content=f'{{"n": {number}}}'),
        answer_schema=SCHEMA if schema else None,
        document_id=document,
    )


def _divided(rows: list[Example], validation: list[Example] | None = None, seed: int = 0) -> DividedRows:
    return DividedRows.of(rows, validation, None, seed)


@given(
    documents=st.lists(st.sampled_from([None, "a", "b", "ü", "d 4"]), min_size=2, max_size=40),
    texts=st.data(),
    seed=st.integers(0, 9),
)
def test_every_row_is_on_one_side_and_no_group_on_both(
    documents: list[str | None], texts: st.DataObject, seed: int
) -> None:
    numbers = texts.draw(st.lists(st.integers(0, 60), min_size=len(documents), max_size=len(documents)))
    rows = [_row(n, document=document) for n, document in zip(numbers, documents, strict=True)]
    by_document = None not in documents and len(set(documents)) > 1
    if not by_document and len(set(numbers)) == 1:
        with pytest.raises(DatasetError, match="validation="):
            _divided(rows, seed=seed)
        return
    parts = _divided(rows, seed=seed)
    assert sorted([e.id for e in parts.train] + [e.id for e in parts.held_out]) == sorted(e.id for e in rows)
    assert parts.by == ("document" if by_document else "question")
    group = (lambda e: e.document_id) if by_document else (lambda e: e.messages[0].content)
    assert not {group(e) for e in parts.train} & {group(e) for e in parts.held_out}
    scored = parts.scored()
    assert scored
    assert {e.id for e in scored} <= {e.id for e in parts.held_out}
    trained = {e.id for e in parts.train}
    assert not trained & {e.id for e in scored} or any("better than on new" in text for text in parts.remarks)


def test_near_duplicates_of_training_rows_are_held_out_and_not_scored() -> None:
    rows = [_row(n, document=f"d{n % 10}") for n in range(60)]
    split = _divided(rows)
    copied = split.train[0].model_copy(update={"document_id": split.held_out[0].document_id})
    parts = _divided([*rows, copied])
    assert copied.id in {e.id for e in parts.held_out}
    assert copied.id not in {e.id for e in parts.scored()}
    assert parts.remarks == ["1 row held out and not scored: near-duplicates of training rows"]


def test_where_every_held_out_row_is_a_near_duplicate_they_are_scored_with_a_warning() -> None:
    parts = _divided([_row(1, document=f"d{n}") for n in range(5)])
    assert len(parts.scored()) == len(parts.held_out)
    assert "The figures are better than on new questions" in parts.remarks[0]


def test_of_many_held_out_rows_a_part_is_scored_and_of_given_ones_all() -> None:
    rows = [_row(n) for n in range(1500)]
    parts = _divided(rows)
    assert len(parts.held_out) > 200
    scored = parts.scored()
    assert len(scored) == 200
    assert f"200 of {len(parts.held_out)} held-out rows are scored" in parts.remarks[0]
    assert [e.id for e in _divided(rows).scored()] == [e.id for e in scored]
    assert len(_divided(rows[:100], rows[100:]).scored()) == 1400


def test_rows_of_retrieved_documents_are_divided_and_scored_by_them() -> None:
    rows = [
        _row(n).model_copy(update={"sources": (Source(node_id=f"n{n}", document_id=f"d{n % 5}"),)})
        for n in range(40)
    ]
    parts = _divided(rows)
    assert parts.by == "document"
    assert {e.document_id for e in parts.scored()} <= {f"d{n}" for n in range(5)}


def test_documents_of_some_rows_alone_are_told() -> None:
    parts = _divided([_row(n, document="d" if n % 2 else None) for n in range(40)])
    assert parts.by == "question"
    assert "20 of 40 rows name no document, so that a document may be on both sides" in parts.remarks[0]


def test_given_rows_of_documents_that_are_trained_on_are_told() -> None:
    parts = _divided(
        [_row(n, document="d1") for n in range(5)], [_row(n, document=f"d{n % 2}") for n in range(9, 15)]
    )
    assert "3 rows held out are of documents that are trained on" in parts.remarks[0]


def test_a_split_that_is_far_from_a_fifth_is_told() -> None:
    sizes = {"one": 90, "two": 5, "three": 5}
    rows = [_row(n, document=name) for name, size in sizes.items() for n in range(len(name), 40 * size, 40)]
    shares = {
        len(parts.held_out) / len(rows): parts.remarks
        for seed in range(9)
        for parts in [_divided(rows, seed=seed)]
    }
    assert max(shares) > 0.8
    assert (
        f"{max(shares):.0%} of the rows are held out, since documents differ in size"
        in shares[max(shares)][0]
    )


def test_rows_without_a_schema_are_trained_on_and_not_scored() -> None:
    rows = [_row(n, schema=n % 2 == 0) for n in range(40)]
    parts = _divided(rows)
    scored = parts.scored()
    assert all(e.answer_schema for e in scored)
    left = len(parts.held_out) - len(scored)
    assert f"{left} rows held out without a schema, which are not scored" in parts.remarks
    with pytest.raises(DatasetError, match="none of the 3 held-out rows has a schema"):
        _divided(rows, [_row(n, schema=False) for n in range(3)])


@pytest.mark.parametrize(
    ("documents", "told"),
    [
        ([None] * 100, "A rate on 100 rows is known to within about 10 points."),
        (
            ["a"] * 9 + ["b"],
            "10 rows of 2 documents is known to within about 69 points: too few to see any but",
        ),
        (["a"], "A rate on 1 row of 1 document is known to within about 98 points: too few"),
    ],
)
def test_rows_of_one_document_count_as_one(documents: list[str | None], told: str) -> None:
    assert told in precision_of([_row(n, document=document) for n, document in enumerate(documents)])


def test_a_data_set_and_its_examples_are_divided_alike() -> None:
    rows = [_row(n) for n in range(20)]
    parts = [_divided(rows), DividedRows.of(FinetuneDataset(rows), None, None, 0)]
    assert [e.id for e in parts[0].train] == [e.id for e in parts[1].train]
