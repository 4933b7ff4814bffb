"""Which of the retrieved chunks stand in a row: the support, its distractors, or neither."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from llama_index.core.schema import NodeWithScore

from ..pairs import Pair

__all__ = ["Context", "Kind", "choose_context", "document_of_node"]

Kind = Literal["with_support", "support_missed", "without_support", "without_context"]


@dataclass(frozen=True)
class Context:
    """The chunks of a row, in the retriever's order, and what is worth counting about them."""

    nodes: list[NodeWithScore]
    kind: Kind
    document_id: str | None
    notes: tuple[str, ...] = ()


def document_of_node(node: NodeWithScore) -> str | None:
    """The id of the document that a chunk was cut from."""
    return node.node.ref_doc_id


_FEW = "fewer distractors retrieved than asked for; raise the retriever's top_k"
_STUCK = "support could not be taken out, nothing else was retrieved; raise the retriever's top_k"


def choose_context(pair: Pair, nodes: Sequence[NodeWithScore], kind: Kind, distractors: int) -> Context:
    """The chunks for ``pair`` under treatment ``kind``; the kind given back is what it came to."""
    support = _support(pair, nodes)
    first = next((n for n in nodes if n.node_id in support), nodes[0] if nodes else None)
    document = pair.document_id or (document_of_node(first) if first else None)
    if kind == "without_context":
        return Context([], kind, document)
    others = [n for n in nodes if n.node_id not in support]
    wanted = others[:distractors] if distractors else others
    notes = (_FEW,) if len(wanted) < distractors else ()
    if kind == "without_support" and others:
        return Context(wanted, kind, document, notes)
    if kind == "without_support":
        notes = (*notes, _STUCK)
    kept = support | {n.node_id for n in wanted}
    reached: Kind = "with_support" if support else "support_missed"
    return Context([n for n in nodes if n.node_id in kept], reached, document, notes)


def _support(pair: Pair, nodes: Sequence[NodeWithScore]) -> set[str]:
    """Ids of the retrieved chunks that support the answer."""
    if pair.node_ids or not nodes:
        return {n.node_id for n in nodes} & pair.node_ids
    document = pair.document_id or document_of_node(nodes[0])
    if document is None:
        return {nodes[0].node_id}
    return {n.node_id for n in nodes if document_of_node(n) == document}
