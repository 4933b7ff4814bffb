"""A scorecard that was cut, edited or written by another version is refused when it is read, not when it is shown."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from llama_index_finetune_structured import FinetuneDataset, Scorecard, compare
from llama_index_finetune_structured.errors import ConfigurationError

ROWS = FinetuneDataset.from_pairs([(f"q{n}", {"year": n, "tags": ["x"]}) for n in range(3)])


def _removed(path: str) -> Any:
    def change(card: Any) -> None:
        *above, last = path.split("/")
        for name in above:
            card = card[int(name) if name.isdigit() else name]
        del card[int(last) if last.isdigit() else last]

    return change


def _set(path: str, value: Any) -> Any:
    def change(card: Any) -> None:
        *above, last = path.split("/")
        for name in above:
            card = card[int(name) if name.isdigit() else name]
        card[last] = value

    return change


CHANGES = {
    "no systems": _set("systems", {}),
    "no rows": _set("rows", []),
    "another number of rows": _removed("rows/1"),
    "no intervals": _removed("systems/base/intervals"),
    "an interval is missing": _removed("systems/tuned/intervals/field_score"),
    "a field is missing": _removed("systems/tuned/fields/year"),
    "an answer is missing": _removed("rows/0/answers/base"),
    "a difference is missing": _removed("differences/0"),
    "a rate is NaN": _set("systems/base/field_score", math.nan),
    "an infinite difference": lambda card: card["differences"][0].update(low=math.inf),
    "a gold value is NaN": lambda card: card["rows"][0].update(gold=math.nan),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_scorecard_with_missing_parts_is_refused_when_it_is_read(name: str, tmp_path: Path) -> None:
    systems = {"base": lambda _: {"year": 1, "tags": []}, "tuned": lambda row: row.answer_object()}
    path = compare(systems, ROWS, show_progress=False).to_json(tmp_path / "scorecard.json")
    assert len(Scorecard.from_json(path).rows) == 3
    card = json.loads(path.read_text("utf-8"))
    CHANGES[name](card)
    path.write_text(json.dumps(card), "utf-8")
    with pytest.raises(ConfigurationError, match="not a scorecard"):
        Scorecard.from_json(path)
