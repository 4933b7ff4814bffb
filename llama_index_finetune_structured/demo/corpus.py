"""The demo's corpus: one document for each function of the installed networkx, and its gold API card.

Docstrings follow https://numpydoc.readthedocs.io/en/latest/format.html.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode
from pydantic import BaseModel, Field

from ..errors import MissingDependencyError

__all__ = [
    "REFERENCE_KEY",
    "ApiCard",
    "Function",
    "Parameter",
    "answerable",
    "functions",
    "node_of",
    "parse_card",
]

REFERENCE_KEY = "reference"
"""Metadata key of the part of a document that the model reads."""

_SECTION = re.compile(r"^(?P<name>[A-Z][A-Za-z ]+)\n-{3,}[ ]*$", re.MULTILINE)
_DEFAULT = re.compile(r"[,;]?\s*[(\[]?\s*\b(?:optional|default|required)\b", re.IGNORECASE)
_LONGEST_CARD = 600  # chosen: characters of JSON that fit into the demo's answers of 256 tokens
_CALLING = ("Parameters", "Other Parameters", "Returns", "Yields", "Raises")


class Parameter(BaseModel):
    name: str
    type: str = Field(description="its type, without default")


class ApiCard(BaseModel):
    """How a function is called."""

    function: str
    parameters: list[Parameter]
    returns: str | None = Field(description="type of the result")
    raises: list[str] = Field(description="exceptions")


@dataclass(frozen=True)
class Function:
    """A documented function.

    ``group`` is its sub-package; ``short_name`` the name in questions, which is unique in the corpus.
    """

    qualified_name: str
    group: str
    docstring: str
    short_name: str

    @property
    def question(self) -> str:
        return f"How do I call {self.short_name}?"

    @property
    def name(self) -> str:
        return self.qualified_name.rsplit(".", 1)[-1]

    @property
    def reference(self) -> str:
        """The sections on how to call the function, without examples, notes and literature."""
        sections = list(_SECTION.finditer(self.docstring))
        ends = [section.start() for section in sections[1:]] + [len(self.docstring)]
        summary = self.docstring[: sections[0].start() if sections else None].strip().split("\n\n")[0]
        kept = [
            self.docstring[section.start() : end].strip()
            for section, end in zip(sections, ends, strict=False)
            if section["name"] in _CALLING
        ]
        return "\n\n".join([f"{self.qualified_name}\n\n{summary}", *kept])


def functions() -> list[Function]:
    """Every public function of the installed networkx that has a docstring, sorted by name.

    ``short_name`` is the bare name, or the dotted one where the bare one is not unique.
    """
    docstrings = {name: doc for module in _modules() for name, doc in _documented(module)}
    bare = Counter(name.rsplit(".", 1)[-1] for name in docstrings)
    return [
        Function(name, _group(name), doc, short if bare[short := name.rsplit(".", 1)[-1]] == 1 else name)
        for name, doc in sorted(docstrings.items())
    ]


def answerable(card: ApiCard) -> bool:
    """Whether a card was parsed without errors and is short enough for the demo's answers."""
    named = all(re.fullmatch(r"\*{0,2}[A-Za-z_]\w*", parameter.name) for parameter in card.parameters)
    typed = all(parameter.type for parameter in card.parameters)
    return bool(card.parameters) and named and typed and len(card.model_dump_json()) <= _LONGEST_CARD


def node_of(function: Function) -> TextNode:
    """The document of a function: the whole text is indexed, the model reads only its ``reference``."""
    source = RelatedNodeInfo(node_id=function.qualified_name)
    return TextNode(
        id_=function.qualified_name,
        text=f"{function.qualified_name}\n\n{function.docstring}",
        metadata={"function": function.name, REFERENCE_KEY: function.reference},
        excluded_embed_metadata_keys=[REFERENCE_KEY],
        excluded_llm_metadata_keys=[REFERENCE_KEY],
        relationships={NodeRelationship.SOURCE: source},
    )


def parse_card(name: str, docstring: str) -> ApiCard:
    """The card of a function, read from its documentation by a docstring parser."""
    try:
        from docstring_parser import DocstringStyle, parse
    except ImportError as error:
        raise MissingDependencyError("docstring_parser", "demo", "The demo's teacher") from error
    parsed = parse(docstring, style=DocstringStyle.NUMPYDOC)
    returned = parsed.many_returns[0] if parsed.many_returns else None
    return ApiCard(
        function=name,
        parameters=[
            Parameter(name=part.strip(), type=_type(parameter.type_name))
            for parameter in parsed.params
            for part in parameter.arg_name.split(",")
        ],
        returns=_type(returned.type_name) or None if returned else None,
        raises=[error_name for error in parsed.raises if (error_name := _exception(error.type_name))],
    )


def _modules() -> Iterator[ModuleType]:
    import networkx

    for info in pkgutil.walk_packages(networkx.__path__, "networkx."):
        if ".tests" not in info.name:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield importlib.import_module(info.name)


def _documented(module: ModuleType) -> Iterator[tuple[str, str]]:
    for name, value in vars(module).items():
        function: Any = inspect.unwrap(value) if callable(value) else None
        if name.startswith("_") or not inspect.isfunction(function) or function.__module__ != module.__name__:
            continue
        if docstring := inspect.getdoc(value):
            yield f"{module.__name__}.{name}", docstring


def _group(qualified_name: str) -> str:
    """The sub-package: ``algorithms.centrality``, ``generators`` ..."""
    parts = qualified_name.split(".")[1:-1]
    return ".".join(parts[:2]) if parts[0] == "algorithms" else parts[0]


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())


def _type(text: str | None) -> str:
    """The type as documented, without the words on defaults and on being optional."""
    kept = _DEFAULT.split(_one_line(text))[0]
    return kept.strip().rstrip(".,;:")


def _exception(text: str | None) -> str | None:
    """The exception's name, where the text begins with one."""
    match = re.match(r"[A-Za-z_][\w.]*", _one_line(text).strip("`:"))
    return match[0] if match else None
