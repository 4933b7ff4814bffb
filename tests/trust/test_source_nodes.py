"""Evidence in a prompt is mapped to the retrieved node whose text stands there, and to the offsets in it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from llama_index_finetune_structured import Evidence, FieldTrust, Trust
from llama_index_finetune_structured.trust.source_nodes import with_nodes

A = "file: a.txt\n\nThe song Rain was written in 1998 by Lee, who lived in Leeds."
B = "file: b.txt\n\nAnother song, Rain, is a cover of it; it was recorded in 1998 too."


def _placed(content: str, start: int, end: int, nodes: dict[str, str]) -> Evidence:
    evidence = Evidence(text=content[start:end], message=1, start=start, end=end)
    trust = Trust(
        fields=(FieldTrust(path=("a",), value="x", evidence=evidence), FieldTrust(path=(), value=1))
    )
    first, second = with_nodes(trust, [None, content], nodes).fields
    assert second.evidence is None
    assert first.evidence is not None
    return first.evidence


def test_of_several_nodes_with_the_text_it_is_the_one_that_stands_there() -> None:
    content = f"Context:\n{A}\n\n{B}\n\nQuery: Was Rain written in 1998?"
    for node, text in (("a", A), ("b", B)):
        start = content.index(text) + text.index("Rain")
        found = _placed(content, start, start + 4, {"a": A, "b": B})
        assert (found.node_id, found.node_start, found.node_end) == (
            node,
            text.index("Rain"),
            text.index("Rain") + 4,
        )
        assert text[found.node_start : found.node_end] == "Rain"


def test_what_stands_in_the_question_is_from_no_node() -> None:
    content = f"Context:\n{A}\n\nQuery: Was Rain written in 1998?"
    found = _placed(content, content.rindex("Rain"), content.rindex("Rain") + 4, {"a": A})
    assert (found.node_id, found.node_start, found.node_end) == (None, None, None)


def test_a_node_of_which_the_prompt_has_a_part_is_found() -> None:
    content = f"Context:\n{A[13:60]}\nQuery: which year?"
    start = content.index("1998")
    found = _placed(content, start, start + 4, {"b": B, "a": A})
    assert (found.node_id, found.node_start) == ("a", A.index("1998"))


_TEXTS = st.lists(st.text("ab c\nö日", min_size=1, max_size=80), min_size=1, max_size=4)


@given(_TEXTS, st.data())
def test_offsets_in_nodes_are_those_of_the_text(texts: list[str], data: st.DataObject) -> None:
    nodes = {str(n): text for n, text in enumerate(texts)}
    number = data.draw(st.integers(0, len(texts) - 1))
    content = "\n\n".join(text.strip() for text in texts)
    part = texts[number].strip()
    if not part:
        return
    before = "".join(text.strip() + "\n\n" for text in texts[:number])
    begin = data.draw(st.integers(0, len(part) - 1))
    end = data.draw(st.integers(begin + 1, len(part)))
    found = _placed(content, len(before) + begin, len(before) + end, nodes)
    if found.node_id is not None:
        assert nodes[found.node_id][found.node_start : found.node_end] == part[begin:end]
    if texts.count(texts[number]) == 1 and len(part) == max(map(len, texts)) > 24:
        assert found.node_id is not None
