"""The documentation of the installed networkx: a document a function, and the gold card read from it.

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
_SECTION = re.compile(r"^(?P<name>[A-Z][A-Za-z ]+)\n-{3,}[ ]*$", re.MULTILINE)
_DEFAULT = re.compile(r"[,;]?\s*[(\[]?\s*\b(?:optional|default|required)\b", re.IGNORECASE)
_LONGEST_CARD = 600
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
    """A documented function: dotted name, the sub-package it lives in, its docstring."""

    qualified_name: str
    group: str
    docstring: str
    asked_as: str

    @property
    def question(self) -> str:
        return f"How do I call {self.asked_as}?"

    @property
    def name(self) -> str:
        return self.qualified_name.rsplit(".", 1)[-1]

    @property
    def reference(self) -> str:
        """The part of the documentation that says how to call it: no examples, notes or literature."""
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
    """Every public function of the installed networkx that has a docstring, by name.

    A function is asked for by its bare name, or by its dotted name where the bare one is not unique.
    """
    found = {name: doc for module in _modules() for name, doc in _documented(module)}
    bare = Counter(name.rsplit(".", 1)[-1] for name in found)
    return [
        Function(name, _group(name), doc, short if bare[short := name.rsplit(".", 1)[-1]] == 1 else name)
        for name, doc in sorted(found.items())
    ]


def answerable(card: ApiCard) -> bool:
    """Whether a docstring was parsed cleanly into a card of a size that a demo answers."""
    named = all(re.fullmatch(r"\*{0,2}[A-Za-z_]\w*", parameter.name) for parameter in card.parameters)
    typed = all(parameter.type for parameter in card.parameters)
    return bool(card.parameters) and named and typed and len(card.model_dump_json()) <= _LONGEST_CARD


def node_of(function: Function) -> TextNode:
    """The document of a function: indexed whole; what the model reads is its ``reference``."""
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
    """The card that a function's documentation states, read by a docstring parser."""
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
        raises=[found for error in parsed.raises if (found := _exception(error.type_name))],
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
    """The type as the documentation writes it, less what it says of defaults and of being optional."""
    kept = _DEFAULT.split(_one_line(text))[0]
    return kept.strip().rstrip(".,;:")


def _exception(text: str | None) -> str | None:
    found = re.match(r"[A-Za-z_][\w.]*", _one_line(text).strip("`:"))
    return found[0] if found else None
