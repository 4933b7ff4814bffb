"""Best one-to-one matching of two lists (the assignment problem), exact."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["best_matching"]


def best_matching(weights: Sequence[Sequence[float]]) -> list[tuple[int, int]]:
    """Pairs (row, column) of the one-to-one matching with the greatest total weight.

    ``weights``: [rows, columns], each >= 0. All rows or all columns are matched, whichever are fewer.
    O(min^2 * max): shortest augmenting paths (Jonker and Volgenant 1987, as in Crouse 2016).
    """
    if not weights or not weights[0]:
        return []
    if len(weights) > len(weights[0]):
        transposed = [list(column) for column in zip(*weights, strict=True)]
        return sorted((row, column) for column, row in best_matching(transposed))
    row_of = _assign([[-w for w in row] for row in weights])
    return sorted((row, column) for column, row in row_of.items())


def _assign(cost: list[list[float]]) -> dict[int, int]:
    """column -> row of the cheapest assignment; ``cost``: [rows, columns] with rows <= columns.

    Rows without a free cheapest column are added one by one, each by the shortest augmenting path, found as in
    Dijkstra's algorithm. ``row_price`` and ``column_price`` are the dual variables: they keep the reduced costs
    (cost - row price - column price) of the rows added so far >= 0, and 0 on assigned pairs.
    """
    columns = len(cost[0])
    row_price, column_price = [min(row) for row in cost], [0.0] * columns
    row_of: dict[int, int] = {}
    waiting = list[int]()
    for row, costs in enumerate(cost):  # most rows get a cheapest column at once
        free = (j for j in range(columns) if costs[j] == row_price[row] and j not in row_of)
        if (first := next(free, None)) is None:
            waiting.append(row)
        else:
            row_of[first] = row
    for start in waiting:
        reached = [float("inf")] * columns  # reduced length of the shortest path to each column
        came_from = [-1] * columns  # the column before it on that path; -1: the path's start
        done: set[int] = set()
        row, column = start, -1
        while True:
            best, nearest = float("inf"), -1
            for j in range(columns):
                if j in done:
                    continue
                step = cost[row][j] - row_price[row] - column_price[j]
                if step < reached[j]:
                    reached[j], came_from[j] = step, column
                if reached[j] < best:
                    best, nearest = reached[j], j
            row_price[start] += best
            for j in done:
                row_price[row_of[j]] += best
                column_price[j] -= best
            for j in range(columns):
                if j not in done:
                    reached[j] -= best
            column = nearest
            if column not in row_of:
                break
            done.add(column)
            row = row_of[column]
        while column != -1:  # flip the pairs along the path
            previous = came_from[column]
            row_of[column] = start if previous == -1 else row_of[previous]
            column = previous
    return row_of
