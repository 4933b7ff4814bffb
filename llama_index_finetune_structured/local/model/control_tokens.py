"""Text as text: control tokens come from the chat template, never from the content of messages and answers.

A tokenizer matches its added tokens (``<|im_end|>``, ``<think>``) anywhere in a text. Where content holds the
text of one, the prompt is encoded by a copy of the tokenizer in which the control tokens have private names, and
only the control tokens of the template are written by those names.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from ...errors import ConfigurationError, DatasetError
from ...panics import is_panic

__all__ = [
    "Part",
    "control_tokens",
    "encode_parts",
    "has_control_text",
    "private_prefix",
    "text_ids",
    "without_control_tokens",
]

Part = tuple[str, bool]
"""A piece of a rendered prompt, and whether it is content."""

# Tai Xuan Jing symbols: no normalizer changes or drops them; they have no case and are no word characters.
_START, _ALPHABET = "\U0001d300", [chr(0x1D306 + n) for n in range(64)]
_PREFIX_DIGITS, _NAME_DIGITS = 8, 4
_SENTENCEPIECE_SPACE = "▁"
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_QUOTE = 40  # characters before a surrogate that an error quotes

_controls: WeakKeyDictionary[Any, tuple[int, dict[int, str]]] = WeakKeyDictionary()
_twins: WeakKeyDictionary[Any, tuple[int, _Twin]] = WeakKeyDictionary()


def text_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text in which nothing is a control token.

    These are the tokenizer's own ids where the text holds no control token's text. Raises DatasetError where the
    tokenizer cannot encode such a text.
    """
    return encode_parts(tokenizer, [(text, True)])


def encode_parts(tokenizer: Any, parts: Sequence[Part]) -> list[int]:
    """Token ids of the joined parts, with control tokens only from parts that are not content.

    Raises DatasetError where the tokenizer cannot encode the content as text.
    """
    controls = control_tokens(tokenizer)
    texts = ["".join(text for text, _ in parts), *(text for text, content in parts if not content)]
    ids, *template = _encode(tokenizer, texts)  # in one call, each of which has its own cost
    expected = [number for ids_ in template for number in ids_ if number in controls]
    if [n for n in ids if n in controls] == expected:
        return ids
    if not tokenizer.is_fast:
        raise DatasetError(
            "the text of a control token is in a message or answer, and this base model's tokenizer, which has no "
            "fast form (tokenizer.json), cannot encode it as text: remove it"
        )
    twin = _twin_for(tokenizer, [text for text, content in parts if content])
    ids = twin.encode("".join(text if content else twin.named(tokenizer, text) for text, content in parts))
    if [n for n in ids if n in controls and n != twin.unknown] != [n for n in expected if n != twin.unknown]:
        raise DatasetError(
            "the text of a control token is in a message or answer, and this base model's tokenizer makes a "
            "control token of it: remove it"
        )
    return ids


def control_tokens(tokenizer: Any) -> dict[int, str]:
    """Text of every control token by its id: the special tokens, and added ones such as ``<think>``.

    Added tokens of white space (Gemma, GPT-NeoX) or of letters and digits are ordinary text.
    """
    known = _controls.get(tokenizer)
    if known is None or known[0] != len(tokenizer):
        found = {
            number: token.content
            for number, token in tokenizer.added_tokens_decoder.items()
            if token.special or not _is_spelling(token.content)
        }
        known = _controls[tokenizer] = (len(tokenizer), found)
    return known[1]


def without_control_tokens(tokenizer: Any, vocabulary: int) -> str:
    """The JSON of a fast tokenizer to which control tokens have no text, for grammars, whose texts are all content.

    Ids are the tokenizer's. Control tokens whose id is not below ``vocabulary``, which a model cannot write, are
    left out. Raises ConfigurationError for a tokenizer without a fast form.
    """
    if not tokenizer.is_fast:
        raise ConfigurationError(
            "the base model's tokenizer has no fast form (tokenizer.json), which grammars need: set "
            "constrained=False or use another base model"
        )
    from tokenizers import Tokenizer

    names = _private_names(control_tokens(tokenizer), _PREFIX)
    own_text = str(tokenizer.backend_tokenizer.to_str())
    config = json.loads(own_text)
    own = [token for token in config["added_tokens"] if token["id"] < vocabulary]
    ids = {names.get(token["content"], token["content"]): token["id"] for token in own}
    text = json.dumps(_renamed({**config, "added_tokens": own}, names))
    twin = Tokenizer.from_str(text)
    kept = all(twin.token_to_id(name) == number for name, number in ids.items())
    return text if kept else own_text


def has_control_text(tokenizer: Any, text: str) -> bool:
    """Whether the tokenizer by itself finds a control token in the text."""
    controls = control_tokens(tokenizer)
    return any(number in controls for number in _encode(tokenizer, [text])[0])


def private_prefix(texts: Sequence[str]) -> str:
    """A short text that is in none of ``texts``. It is random, so that no message can hold it on purpose."""
    prefix = _PREFIX
    while any(prefix in text for text in texts):
        prefix = _random_prefix()
    return prefix


def _random_prefix() -> str:
    return _START + "".join(secrets.choice(_ALPHABET) for _ in range(_PREFIX_DIGITS))


_PREFIX = _random_prefix()  # one for the process, so that twins can be kept


def _is_spelling(content: str) -> bool:
    bare = content.replace(_SENTENCEPIECE_SPACE, "").strip()
    return not bare or bare.isalnum()


def _encode(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """The tokenizer's own ids of each text. Raises DatasetError for what no tokenizer encodes."""
    for text in texts:
        if lone := _LONE_SURROGATE.search(text):
            raise DatasetError(
                f"a message, schema or answer has half a character ({lone[0]!r} after "
                f"{text[: lone.start()][-_QUOTE:]!r}), a lone surrogate: remove it, or decode the text as UTF-16"
            )
    with _encoding():
        ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    return ids


@contextmanager
def _encoding() -> Iterator[None]:
    """Raise DatasetError where the tokenizer gives up: a damaged one, or a pattern that takes endless steps."""
    try:
        yield
    except BaseException as error:
        if not is_panic(error) and type(error) is not Exception:  # the classes that tokenizers raises
            raise
        raise DatasetError(
            f"the base model's tokenizer cannot encode a text ({error}): use another base model, or leave the text out"
        ) from error


def _twin_for(tokenizer: Any, contents: Sequence[str]) -> _Twin:
    prefix, known = private_prefix(contents), _twins.get(tokenizer)
    if known is not None and known[0] == len(tokenizer) and known[1].prefix == prefix:
        return known[1]
    twin = _Twin(tokenizer, prefix)
    if prefix == _PREFIX:
        _twins[tokenizer] = (len(tokenizer), twin)
    return twin


class _Twin:
    """A copy of a fast tokenizer in which the control tokens have private names, each starting with ``prefix``.

    ``unknown``: id of the token that stands for characters outside the vocabulary; None without one.
    """

    def __init__(self, tokenizer: Any, prefix: str) -> None:
        from tokenizers import Tokenizer

        self.prefix, self._texts = prefix, control_tokens(tokenizer)
        names = _private_names(self._texts, prefix)
        self._names = {number: names[text] for number, text in self._texts.items()}
        config = json.loads(tokenizer.backend_tokenizer.to_str())
        self.unknown = _unknown(config["model"])
        own = {token["content"]: token["id"] for token in config["added_tokens"]}
        self._tokenizer = Tokenizer.from_str(json.dumps(_renamed(config, names)))
        # Tokens that are not in the model's vocabulary may have other ids in the copy.
        self._ids = {self._tokenizer.token_to_id(names.get(text, text)): n for text, n in own.items()}

    def encode(self, text: str) -> list[int]:
        """The tokenizer's own ids of a text with control tokens under their private names."""
        with _encoding():
            ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        return [self._ids.get(number, number) for number in ids]

    def named(self, tokenizer: Any, text: str) -> str:
        """A text of the template with its control tokens under their private names."""
        with _encoding():
            encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        named, end = [], 0
        for number, (first, last) in zip(encoding["input_ids"], encoding["offset_mapping"], strict=True):
            if number in self._names and (number != self.unknown or text[first:last] == self._texts[number]):
                named += [text[end:first], self._names[number]]
                end = last
        return "".join(named) + text[end:]


def _private_names(controls: Mapping[int, str], prefix: str) -> dict[str, str]:
    """Private name of each control token, by its text."""
    return {text: prefix + _digits(n) for n, text in enumerate(controls.values())}


def _digits(number: int) -> str:
    return "".join(_ALPHABET[number // 64**place % 64] for place in range(_NAME_DIGITS))


def _unknown(model: dict[str, Any]) -> int | None:
    token = model.get("unk_token")
    number = model.get("unk_id") if token is None else model["vocab"].get(token)
    return None if number is None else int(number)


def _renamed(config: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """A fast tokenizer's JSON with other names of its control tokens, and no tokens added around a text."""
    config.update(truncation=None, padding=None, post_processor=None)
    for token in config["added_tokens"]:
        if token["content"] in names:
            # Found before normalizers run, and whatever stands beside it.
            token.update(content=names[token["content"]], special=True, normalized=False, single_word=False)
    _rename_pieces(config["model"], names)
    return config


def _rename_pieces(model: dict[str, Any], names: Mapping[str, str]) -> None:
    """Rename pieces of a tokenizer's model, so that it cannot build them from text, and drop their merges."""
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(piece, piece): number for piece, number in vocabulary.items()}
    else:
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in vocabulary]
    if "merges" in model:
        pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
        model["merges"] = [
            [left, right] for left, right in pairs if not {left, right, left + right} & names.keys()
        ]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
