"""pandas, for those who have it: tables of data sets and scorecards as DataFrames."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .errors import ConfigurationError

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["data_frame"]


def data_frame(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> DataFrame:
    """A DataFrame of rows, with these columns also where there are none.

    Raises ConfigurationError without pandas, which no extra of this package installs.
    """
    try:
        import pandas
    except ImportError as error:
        raise ConfigurationError(
            "to_pandas() needs pandas, which is not installed: pip install pandas"
        ) from error
    return pandas.DataFrame(list(rows), columns=list(columns))
