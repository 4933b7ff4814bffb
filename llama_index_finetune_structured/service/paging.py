"""Pages of a listing: rows after an id, in the order in which they were made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from sqlalchemy import ColumnElement, Table, select

from .database import Database, Record
from .errors import invalid

__all__ = ["Order", "listed_page"]

Order = Literal["asc", "desc"]


def listed_page(
    database: Database,
    table: Table,
    where: Sequence[ColumnElement[bool]],
    *,
    after: str | None,
    limit: int,
    order: Order = "desc",
) -> tuple[list[Record], bool]:
    """At most ``limit`` rows after the one with that id, and whether there are more.

    Raises ApiError where the rows have no such id.
    """
    with database.read() as connection:
        chosen = select(table).where(*where)
        if after is not None:
            number = connection.scalar(select(table.c.number).where(*where, table.c.id == after))
            if number is None:
                raise invalid("There is nothing with the id of 'after' in this list.", "after")
            chosen = chosen.where(table.c.number < number if order == "desc" else table.c.number > number)
        by = table.c.number.desc() if order == "desc" else table.c.number
        rows = list(connection.execute(chosen.order_by(by).limit(limit + 1)).all())
    return rows[:limit], len(rows) > limit
