"""The rows that ``improve`` takes from a capture: each row has one fate, and nothing held out is trained on."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llama_index_finetune_structured import Example
from llama_index_finetune_structured.example import Message
from llama_index_finetune_structured.tuning.new_rows import NewRows
from tests.tuning.test_division import _divided, _row

DOCUMENTS = st.sampled_from([None, "a", "b", "ü", "d 4"])
PLACES = st.lists(st.tuples(st.integers(0, 60), DOCUMENTS), max_size=30)


def _asked(number: int, query: str, *, answer: str = "[]", document: str | None = None) -> Example:
    """A row with a question about a text of its own."""
    text = " ".join(f"w{number}x{word}" for word in range(40))
    return Example(
        messages=(Message(role="user", content=f"{text}\n{query}"),),
        answer=Message(role="assistant", content=f'{{"citations": {answer}}}'),
        answer_schema={"type": "object"},
        query=query,
        document_id=document,
    )


@given(old=st.lists(st.tuples(st.integers(0, 60), DOCUMENTS), min_size=2, max_size=30), new=PLACES)
def test_every_captured_row_is_taken_or_counted_once_and_none_is_held_out(
    old: list[tuple[int, str | None]], new: list[tuple[int, str | None]]
) -> None:
    rows = [_row(n, document=document) for n, document in {n: (n, document) for n, document in old}.values()]
    if len(rows) < 2 or (len({e.document_id for e in rows}) < 2 and len(rows) < 2):
        return
    parts = _divided(rows)
    captured = [_row(n, document=document) for n, document in new]
    found = NewRows.of(captured, list(parts.train), list(parts.held_out))
    assert found.taken == len(found.rows)
    assert found.taken + sum(found.left_out.values()) == len(captured)
    taken = {e.id for e in found.rows}
    assert len(taken) == found.taken
    assert not taken & {e.id for e in (*parts.train, *parts.held_out)}
    if parts.by == "document":
        assert not {e.document_id for e in found.rows} & {e.document_id for e in parts.held_out}
    again = NewRows.of(captured, [*parts.train, *found.rows], list(parts.held_out))
    assert again.taken == 0


def test_each_reason_is_told_with_its_number() -> None:
    train = [_row(n, document=f"d{n % 3}") for n in range(9)]
    held_out = [_row(n, document="h") for n in range(9, 12)]
    near = [
        e.model_copy(update={"answer": Message(role="assistant", content='{"n": 77}'), "document_id": "x"})
        for e in (_row(1, text=" ".join(f"t{n}" for n in range(40))),)
    ]
    train.append(_row(1, text=" ".join(f"t{n}" for n in range(40)), document="d1"))
    captured = [
        _row(20, document="n"), _row(20, document="n"), held_out[0], _row(21, document="h"),
        held_out[1].model_copy(update={"document_id": "n", "answer": Message(role="assistant", content='{"n": 5}')}),
        train[0], *near,
    ]  # fmt: skip
    found = NewRows.of(captured, train, held_out)
    assert str(found) == (
        "1 of 7 rows are new; left out: 1 repeated in the capture, 1 held out, 1 of held-out documents, "
        "1 with held-out questions, 1 trained on already, 1 near-duplicates of training rows"
    )


def test_near_duplicates_of_held_out_rows_are_never_trained_on() -> None:
    text = " ".join(f"t{n}" for n in range(40))
    held_out = [_row(1, text=text, document="h")]
    copy = _row(1, text=f"{text} and", document="n")
    found = NewRows.of([copy], [_row(5, document="d")], held_out)
    assert found.left_out == {"near-duplicates of held-out rows": 1}


def test_a_question_that_is_asked_about_many_texts_is_no_repetition_of_a_held_out_one() -> None:
    query = "Which citations are mentioned in the section about the summary?"
    train = [_asked(n, query, document=f"d{n}") for n in range(3)]
    held_out = [_asked(n, query, document=f"h{n}") for n in range(3, 6)]
    new = [_asked(n, query, document=f"n{n}") for n in range(6, 9)]
    assert NewRows.of([*new, *train, *held_out], train, held_out).rows == tuple(new)


def test_a_document_that_is_on_both_sides_already_does_not_bar_its_other_questions() -> None:
    train = [_row(n, document="d") for n in range(5)]
    held_out = [_row(n, document="d") for n in range(5, 7)]
    assert NewRows.of([_row(9, document="d"), held_out[0]], train, held_out).taken == 1
