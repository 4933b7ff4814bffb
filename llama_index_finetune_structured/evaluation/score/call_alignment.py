"""Aligns the tool calls of two runs: a longest common subsequence over names, in which parallel calls are a set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache

from ...example import canonical_json
from ..run.agent_run import AgentCall, AgentRun
from .matching import best_matching

__all__ = ["Likeness", "aligned_calls", "common_calls"]

Likeness = Callable[[int, int], float]
"""(index of a gold call, index of a call of the same tool) -> likeness of the arguments, 1 where all are right."""

_NAME, _EXACT = 1e6, 1e3
"""Weights of a pair of equal names and of one whose arguments are right: names first, then whole calls, then
likeness. Each is more than all weights of the next kind in any real run."""
_MOST_STATES = 5_000
"""Chosen: 0.1 s; ten turns of two parallel calls in both runs are 1,600. A tenth of it in both runs together: the
recursion, which is not deeper, then ends far from Python's limit."""

_Turn = list[int]  # indices of calls
_Pairs = list[tuple[int, int]]


def aligned_calls(gold: AgentRun, run: AgentRun, likeness: Likeness) -> _Pairs:
    """Pairs (index in ``gold.calls``, index in ``run.calls``) of calls of one tool, in the same order in both runs.

    The order of parallel calls is free, also where the other run makes them one after another. Of all longest
    alignments, one with the most right arguments. Permuting parallel calls permutes the pairs alone.
    """
    return _Alignment(gold, run, likeness).pairs()


def common_calls(gold: AgentRun, run: AgentRun) -> int:
    """Number of the calls that both runs make, by name and in any order."""
    names = Counter(call.name for call in gold.calls), Counter(call.name for call in run.calls)
    return (names[0] & names[1]).total()


class _Alignment:
    """Weighted alignment of turns by dynamic programming, exact but for runs with many parallel calls.

    There, a turn is aligned with one turn of the other run or, where it has parallel calls, with several successive
    ones, and then its calls are matched with theirs one to one; a turn that shares its calls with two such blocks may
    leave some of them without a partner.
    """

    def __init__(self, gold: AgentRun, run: AgentRun, likeness: Likeness) -> None:
        self._gold_turns, self._run_turns = _turns(gold), _turns(run)
        golds, calls = gold.calls, run.calls
        self._weights = {
            (g, r): _weight(likeness(g, r))
            for g in range(len(golds))
            for r in range(len(calls))
            if golds[g].name == calls[r].name
        }

    def pairs(self) -> _Pairs:
        states = [sum(2 ** len(turn) for turn in turns) for turns in (self._gold_turns, self._run_turns)]
        is_small = states[0] * states[1] <= _MOST_STATES and sum(states) <= _MOST_STATES // 10
        return sorted(self._exact() if is_small else self._best_blocks())

    def _exact(self) -> _Pairs:
        """The best alignment, over all states: a turn of each run and the sets of its calls that are matched."""

        @cache
        def best(i: int, golds: frozenset[int], j: int, calls: frozenset[int]) -> tuple[float, _Pairs]:
            if i == len(self._gold_turns) or j == len(self._run_turns):
                return 0.0, []
            chosen = max(best(i + 1, none, j, calls), best(i, golds, j + 1, none), key=_total)
            for g in self._gold_turns[i]:
                for r in self._run_turns[j]:
                    if g not in golds and r not in calls and (g, r) in self._weights:
                        weight, pairs = best(i, golds | {g}, j, calls | {r})
                        if weight + self._weights[g, r] > chosen[0]:
                            chosen = weight + self._weights[g, r], [(g, r), *pairs]
            return chosen

        none = frozenset[int]()
        return best(0, none, 0, none)[1]

    def _best_blocks(self) -> _Pairs:
        """The pairs of the best sequence of blocks: one turn against a few successive ones of the other run."""
        rows, columns = len(self._gold_turns), len(self._run_turns)
        best: list[list[tuple[float, _Pairs]]] = [[(0.0, [])] * (columns + 1) for _ in range(rows + 1)]
        for i in range(1, rows + 1):
            for j in range(1, columns + 1):
                chosen = max(best[i - 1][j], best[i][j - 1], key=_total)
                for height, width in self._blocks(i, j):
                    weight, pairs = self._matched(
                        self._gold_turns[i - height : i], self._run_turns[j - width : j]
                    )
                    before = best[i - height][j - width]
                    if before[0] + weight > chosen[0]:
                        chosen = (before[0] + weight, [*before[1], *pairs])
                best[i][j] = chosen
        return best[rows][columns][1]

    def _blocks(self, i: int, j: int) -> list[tuple[int, int]]:
        """(gold turns, turns of the run) of the blocks that end at these turns; a single call needs no longer one."""
        heights = range(2, i + 1) if len(self._run_turns[j - 1]) > 1 else ()
        widths = range(2, j + 1) if len(self._gold_turns[i - 1]) > 1 else ()
        return [(1, 1), *((height, 1) for height in heights), *((1, width) for width in widths)]

    def _matched(self, gold_turns: Sequence[_Turn], run_turns: Sequence[_Turn]) -> tuple[float, _Pairs]:
        golds = [g for turn in gold_turns for g in turn]
        calls = [r for turn in run_turns for r in turn]
        weights = [[self._weights.get((g, r), 0.0) for r in calls] for g in golds]
        matched = [(g, r) for g, r in best_matching(weights) if weights[g][r] > 0]
        return sum(weights[g][r] for g, r in matched), [(golds[g], calls[r]) for g, r in matched]


def _turns(run: AgentRun) -> list[_Turn]:
    """The indices of each turn's calls, for turns that have any; equal whatever the order of parallel calls."""
    turns: list[_Turn] = []
    first = 0
    for turn in run.turns:
        if turn.calls:
            order = sorted(range(len(turn.calls)), key=lambda at: _sorting_key(turn.calls[at]))
            turns.append([first + at for at in order])
        first += len(turn.calls)
    return turns


def _sorting_key(call: AgentCall) -> tuple[str, str]:
    return call.name, canonical_json(call.arguments)


def _weight(likeness: float) -> float:
    return _NAME + (_EXACT if likeness >= 1.0 else likeness)


def _total(cell: tuple[float, _Pairs]) -> float:
    return cell[0]
