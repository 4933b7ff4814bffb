"""Judges the values of an answer by gold, one by one: which ought to be there, which are right, what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...trust.json_spans import JsonPath
from ..run.kept_trust import KeptTrust
from .answers import as_list, matched_items
from .fields import Field, fields_of, inferred_schema

__all__ = ["judged_trust"]

_Verdict = tuple[bool | None, bool | None]  # whether a value is due, and whether it is right
_RIGHT: _Verdict = (True, True)  # of an object: every value in it
_INVENTED: _Verdict = (False, None)


def judged_trust(
    trust: KeptTrust, fields: Sequence[Field], gold: Any, written_gold: Any, answer: Any
) -> KeptTrust:
    """The trust with the verdicts of gold on each value and end; those without one are in no scored field.

    ``gold``, ``answer``: as they are scored. ``written_gold``: gold as its example has it, which tells a key that is
    left out from one that is null: a value where the key is left out is not due, one where it is null is wrong.
    """
    judge = _Judge()
    judge.fields(fields, gold, written_gold, answer, ())
    return trust.model_copy(
        update={
            "values": tuple(
                value._replace(is_due=verdict[0], is_right=verdict[1])
                for value in trust.values
                for verdict in [judge.verdict(value.path)]
            ),
            "ends": tuple(end._replace(is_complete=judge.is_complete(end.path)) for end in trust.ends),
        }
    )


class _Judge:
    """Verdicts by path of the answer. ``_ends``: whether a list or object has all that gold has there."""

    def __init__(self) -> None:
        self._verdicts = dict[JsonPath, _Verdict]()
        self._ends = dict[JsonPath, bool]()

    def is_complete(self, path: JsonPath) -> bool | None:
        """Whether the list or object at a path has all that gold has there; None where gold has no such."""
        return self._ends.get(path, True if self.verdict(path) == _RIGHT else None)

    def verdict(self, path: JsonPath) -> _Verdict:
        """Of the value at a path, else of what holds it: a free object or an invented item is judged as a whole."""
        for length in range(len(path), -1, -1):
            if path[:length] in self._verdicts:
                return self._verdicts[path[:length]]
        return None, None

    def fields(self, fields: Sequence[Field], gold: Any, written: Any, answer: Any, path: JsonPath) -> None:
        """Judge the fields of an object, or of a list's item, at ``path``."""
        for field in fields:
            wanted, found = field.value_in(gold), field.value_in(answer)
            self._object_ends(field.keys, wanted is not None, answer, path)
            place, inner = (*path, *field.keys), _at(written, field.keys)
            if wanted is None and found is not None:
                self._verdicts[place] = (True, False) if _has(written, field.keys) else _INVENTED
            elif field.kind == "list":
                self._list(field, as_list(wanted), as_list(inner), as_list(found), place)
            elif found is None or wanted is None:
                self._verdicts[place] = (True, wanted is None)
            elif field.rule.is_correct(field.rule.similarity(wanted, found)):
                self._verdicts[place] = _RIGHT
            elif isinstance(found, dict | list) and type(found) is type(wanted):
                # such as one of a union of objects: right and wrong as a whole, but not every value in it
                self.fields(fields_of(inferred_schema([wanted, found]), {}), wanted, inner, found, place)
            else:
                self._verdicts[place] = (True, False)

    def _list(
        self, field: Field, gold: list[Any], written: list[Any], answer: list[Any], path: JsonPath
    ) -> None:
        pairs = matched_items(field, gold, answer)
        self._ends[path] = len(pairs) == len(gold)
        self._verdicts[path] = (True, not gold)  # of an empty list; values in items have their own verdicts
        written = written if len(written) == len(gold) else gold
        for number in range(len(answer)):
            self._verdicts[(*path, number)] = _INVENTED
        for wanted, found in pairs:
            item = (*path, found)
            self._verdicts[item] = (None, None)
            self.fields(field.items, gold[wanted], written[wanted], answer[found], item)

    def _object_ends(self, keys: Sequence[str], is_wanted: bool, answer: Any, path: JsonPath) -> None:
        """Record where an object on the way to a field was ended without the key that leads on."""
        for depth, key in enumerate(keys):
            if not isinstance(answer, dict):
                return
            place = (*path, *keys[:depth])
            if key not in answer:
                self._ends[place] = self._ends.get(place, True) and not is_wanted
                return
            self._ends.setdefault(place, True)
            answer = answer[key]


def _has(value: Any, keys: Sequence[str]) -> bool:
    for key in keys:
        if not isinstance(value, dict) or key not in value:
            return False
        value = value[key]
    return True


def _at(value: Any, keys: Sequence[str]) -> Any:
    return None if not _has(value, keys) else _at(value[keys[0]], keys[1:]) if keys else value
