"""Near-duplicates across a split are found and reported."""

from __future__ import annotations

import random
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_index_finetune_structured import Example
from llama_index_finetune_structured.dataset import FinetuneDataset
from llama_index_finetune_structured.dataset.leakage import LeakageReport, find_leaks

WORDS = [f"word{n}" for n in range(2000)]


def sentence(seed: int, length: int = 40) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=length))


def data(*pairs: tuple[str, object]) -> FinetuneDataset:
    return FinetuneDataset.from_pairs(pairs)


def leaks_between(train: Iterable[Example], validation: Iterable[Example]) -> LeakageReport:
    return find_leaks(list(train), list(validation))


def test_near_duplicates_are_found_with_their_rows_and_others_are_not() -> None:
    train = data(*((sentence(n), "a") for n in range(300)))
    words = sentence(7).split()
    words[20] = "changed"
    report = leaks_between(train, data((sentence(1000), "a"), (" ".join(words).upper(), "a")))
    assert [(leak.validation_row, leak.train_row) for leak in report.leaks] == [(1, 7)]
    assert 0.8 < report.leaks[0].similarity < 1
    assert report.share == 0.5
    assert "1 of 2 validation rows (50%)" in str(report)


@given(st.integers(0, 10_000))
def test_equal_rows_are_always_found(seed: int) -> None:
    text = sentence(seed, length=1 + seed % 9)
    report = leaks_between(data((text, {"b": seed})), data((text, {"b": seed})))
    assert report.leaks[0].similarity == 1


def test_the_keys_of_structured_answers_do_not_make_rows_alike() -> None:
    def card(n: int) -> dict[str, object]:
        return {
            "function_name_of_the_card": f"f{n}",
            "parameters_of_the_function": [{"name": f"p{n}", "type": "int"}],
        }

    report = leaks_between(data((sentence(1, 5), card(1))), data((sentence(2, 5), card(2))))
    assert str(report) == "no near-duplicates of train among 1 validation rows"


def test_messages_stand_in_for_a_missing_question() -> None:
    rows = [e.model_copy(update={"query": None}) for e in data((sentence(1), "a"))]
    assert len(leaks_between(rows, rows).leaks) == 1


def test_splitting_warns_of_leaks_unless_check_leakage_is_off(caplog: pytest.LogCaptureFixture) -> None:
    pairs = [(f"{sentence(n // 2)} {n}", "a") for n in range(40)]
    _, validation = data(*pairs).split(0.5)
    assert validation.leakage is not None
    assert len(validation.leakage.leaks) > 3
    assert "are near-duplicates of train rows" in caplog.text
    caplog.clear()
    _, quiet = data(*pairs).split(0.5, check_leakage=False)
    assert quiet.leakage is None
    assert caplog.text == ""
