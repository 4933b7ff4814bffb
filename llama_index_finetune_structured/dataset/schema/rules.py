"""Rules of a YAML schema on sums: which values of an answer add up to which."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

from pydantic import BaseModel

from ...json_schema import follow_references
from ...stated_rules import RULES, sum_rule

__all__ = ["rule_faults", "rule_keyword"]

_PATH = re.compile(r"([^.\[\]]+)((?:\[\])*)")
_NUMBERS = {"number", "integer"}


def rule_keyword(rules: list[Any]) -> dict[str, Any]:
    """The rules as a JSON schema has them; empty without any. ``rules``: with ``parts``, ``equals``, ``tolerance``."""
    found = [sum_rule(rule.parts, rule.equals, Decimal(str(rule.tolerance))) for rule in rules]
    return {RULES: found} if found else {}


def rule_faults(rules: list[Any], output_cls: type[BaseModel]) -> Iterator[tuple[int, str, str]]:
    """Number of a rule, its key, and why a path in it leads to no number of the class."""
    schema = output_cls.model_json_schema()
    for number, rule in enumerate(rules):
        for key, path in (*(("sum", part) for part in rule.parts), ("equals", rule.equals)):
            if not _leads_to_number(schema, path):
                yield (
                    number,
                    key,
                    f"{path!r} leads to no number; expected a path such as total or items[].amount",
                )


def _leads_to_number(root: Mapping[str, Any], path: str) -> bool:
    parts = path.split(".")
    matches = [_PATH.fullmatch(part) for part in parts]
    node: Any = root
    for match in matches:
        if match is None:
            return False
        node = (_bare(root, node).get("properties") or {}).get(match[1])
        for _ in range(len(match[2]) // 2):
            node = _bare(root, node).get("items")
    found = _bare(root, node)
    written = found.get("x-written") or {}
    is_decimal = any(branch.get("type") in _NUMBERS for branch in found.get("anyOf") or ())
    return found.get("type") in _NUMBERS or is_decimal or written.get("type") in {"decimal", *_NUMBERS}


def _bare(root: Mapping[str, Any], node: Any) -> Mapping[str, Any]:
    """A schema without its reference, and without null beside one other."""
    node = follow_references(root, node)
    others = [branch for branch in node.get("anyOf") or () if branch.get("type") != "null"]
    return follow_references(root, others[0]) if len(others) == 1 else node
