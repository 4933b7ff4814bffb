"""The alarm of drift: once for each episode, seldom without one."""

from __future__ import annotations

import copy
import logging
import pickle
import random
import threading

import pytest

from llama_index_finetune_structured.llms.cascade_counts import WINDOW, CascadeCounts
from llama_index_finetune_structured.trust.selection import HandOverShare, expected_share

EXPECTED = expected_share([(n / 200, True) for n in range(200)], 0.2, WINDOW)


def _add(counts: CascadeCounts, calls: int, handed_over: int) -> None:
    for _ in range(handed_over):
        counts.add("teacher", "key", EXPECTED)
    for _ in range(calls - handed_over):
        counts.add("student", "key", EXPECTED)


def test_a_share_that_leaves_its_interval_is_told_once_for_each_episode(
    caplog: pytest.LogCaptureFixture,
) -> None:
    counts = CascadeCounts()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            _add(counts, 100, 20)
        assert caplog.records == []
        _add(counts, 90, 90)
        assert len(caplog.records) == 1
        assert counts.schemas()["key"]["is_drifting"]
        for _ in range(20):
            _add(counts, 10, 2)
        assert not counts.schemas()["key"]["is_drifting"]
        _add(counts, 90, 90)
    assert [record.message[:6] for record in caplog.records] == ["drift:"] * 2
    assert counts.schemas()["key"]["drift_episodes"] == 2


def test_calls_like_the_held_out_rows_seldom_give_an_alarm() -> None:
    """In 40 runs of 1,000 calls, one alarm at most."""
    alarms = 0
    for seed in range(40):
        rng, counts = random.Random(seed), CascadeCounts()
        for _ in range(1000):
            counts.add("teacher" if rng.random() < 0.2 else "student", "key", EXPECTED)
        alarms += counts.schemas()["key"]["drift_episodes"]
    assert alarms <= 1


def test_no_alarm_is_given_before_a_window_is_full_or_without_held_out_rows() -> None:
    counts = CascadeCounts()
    _add(counts, WINDOW - 1, WINDOW - 1)
    assert not counts.schemas()["key"]["is_drifting"]
    for _ in range(2 * WINDOW):
        counts.add("teacher", "other", None)
    assert not counts.schemas()["other"]["is_drifting"]


def test_threads_lose_no_count_and_a_copy_counts_anew() -> None:
    counts = CascadeCounts()
    threads = [threading.Thread(target=_add, args=(counts, 500, 100)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (counts.outcomes()["student"], counts.outcomes()["teacher"]) == (3200, 800)
    for other in (copy.deepcopy(counts), pickle.loads(pickle.dumps(counts))):
        assert set(other.outcomes().values()) == {0}


def test_an_expected_share_has_the_noise_of_the_rows_and_of_the_window() -> None:
    few = expected_share([(n / 20, True) for n in range(20)], 0.2, WINDOW)
    assert isinstance(few, HandOverShare)
    assert few.share == EXPECTED.share == 0.2
    assert len(few.counts) > len(EXPECTED.counts) > 20
