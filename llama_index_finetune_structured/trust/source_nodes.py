"""Which retrieved node the evidence of a value is from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .answer_trust import Evidence, Trust

__all__ = ["with_nodes"]

_SURE = 24  # chosen: characters; a node's text and another text share so many in one place rarely by chance


def with_nodes(trust: Trust, contents: Sequence[str | None], nodes: Mapping[str, str]) -> Trust:
    """The trust whose evidence says which node it is from, where it is from one.

    Prompts have the nodes' texts whole or in parts, so a place in a node counts by how far the texts around it agree.

    Args:
        trust: The trust.
        contents: Of the messages by index.
        nodes: Texts of the nodes, as the prompt has them, by the nodes' ids.
    """
    fields = (
        field
        if field.evidence is None
        else field.model_copy(update={"evidence": _placed(field.evidence, contents, nodes)})
        for field in trust.fields
    )
    return trust.model_copy(update={"fields": tuple(fields)})


def _placed(evidence: Evidence, contents: Sequence[str | None], nodes: Mapping[str, str]) -> Evidence:
    content = contents[evidence.message] or ""
    before, after = content[: evidence.start], content[evidence.end :]
    best, found = 0, evidence
    for name, text in nodes.items():
        at = -1
        enough = min(_SURE, len(text.strip()))
        while (at := text.find(evidence.text, at + 1)) >= 0:
            end = at + len(evidence.text)
            agreed = _shared_end(before, text[:at]) + end - at + _shared_start(after, text[end:])
            if agreed > best and agreed >= enough:
                best = agreed
                found = evidence.model_copy(update={"node_id": name, "node_start": at, "node_end": end})
    return found


def _shared_start(one: str, other: str) -> int:
    """Characters that two texts begin with in common."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _shared_end(one: str, other: str) -> int:
    """Characters that two texts end with in common."""
    size = min(len(one), len(other))
    return _shared_start(one[len(one) - size :][::-1], other[len(other) - size :][::-1])
