"""Answers of a local model in its base's own form of tool calls, read as a turn's JSON text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..local.model.control_tokens import control_tokens
from ..local.model.prompts import PromptForm, turn_form
from ..local.model.tool_form import ToolForm
from ..local.schema.turn_tools import turn_tools

__all__ = ["OwnTurns"]


class OwnTurns:
    """Reads turns in a form. To streams it is the tokenizer whose texts have the control tokens of tool calls."""

    all_special_ids: Sequence[int] = ()  # none is left out

    def __init__(self, tokenizer: Any, form: ToolForm, schema: Mapping[str, Any]) -> None:
        """``schema``: of the turns."""
        self._tokenizer, self._form = tokenizer, form
        self._names = [str(tool["function"]["name"]) for tool in turn_tools(schema)]

    @classmethod
    def of(cls, tokenizer: Any, schema: Mapping[str, Any] | None, form: PromptForm) -> OwnTurns | None:
        """The reader of answers to a schema in prompts of a form; None where they are text or JSON."""
        found = turn_form(tokenizer, schema, form)
        return None if found is None or schema is None else cls(tokenizer, found, schema)

    def decode(self, tokens: Sequence[int], **_: Any) -> str:
        """The text of tokens."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=False))

    def text(self, written: str, *, is_whole: bool = True) -> str:
        """The JSON text of a turn, as far as it goes where it is not whole; one in another form as it is."""
        found = self._form.as_json(written, self._names, is_whole=is_whole)
        return written if found is None else "".join(found)

    def token_texts(self, tokens: Sequence[int], texts: Sequence[bytes]) -> list[bytes]:
        """What each token is in the JSON text, and at last what their end is. ``texts``: of the tokens."""
        controls = control_tokens(self._tokenizer)
        own = [
            controls[token].encode() if token in controls else text
            for token, text in zip(tokens, texts, strict=True)
        ]
        written = b"".join(own).decode("utf-8", "replace")
        found = self._form.as_json(written, self._names)
        if found is None:
            return [*own, b""]
        by_byte = [
            piece
            for character, text in zip(written, found, strict=False)
            for piece in (text.encode(), *[b""] * (len(character.encode()) - 1))
        ]
        ends = iter(by_byte)
        return [
            *(b"".join(piece for _, piece in zip(text, ends, strict=False)) for text in own),
            found[-1].encode(),
        ]
