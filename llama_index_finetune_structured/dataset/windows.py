"""Windows of a text: its sentences, groups of them, and the training rows that are made of them."""

from __future__ import annotations

from ..local.schema.list_items import Span

__all__ = ["sentence_spans", "text_windows"]


def sentence_spans(text: str) -> list[Span]:
    """The sentences of a text, in order; they cover all of it, spaces included."""
    raise NotImplementedError


def text_windows(text: str, sentences: int) -> list[Span]:
    """Windows of so many sentences each, the last of fewer; they cover the text and do not overlap."""
    spans = sentence_spans(text)
    return [
        (group[0][0], group[-1][1])
        for group in (spans[n : n + sentences] for n in range(0, len(spans), sentences))
    ]
