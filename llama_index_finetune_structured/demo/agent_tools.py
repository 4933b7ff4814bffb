"""The tools of the demo's agent: search, signatures, comparison and arithmetic over documented functions."""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from llama_index.core.schema import TextNode
from llama_index.core.tools import BaseTool, FunctionTool

from ..dataset.generate.retrieval import bm25_retriever
from .corpus import Function, answerable, functions, node_of, parse_card

__all__ = ["AgentTools", "DescribedParameter", "DocumentedFunction", "documented_functions"]

# Chosen, all three: what a tool returns stays short enough for a small model's context.
_MOST_PARAMETERS = 8
_LONGEST_SUMMARY = 100
_MOST_MATCHES = 5
_LONGEST_EXPRESSION = (
    200  # chosen: without powers, the result stays small and Python's parser far from its limits
)
_NEAR_NAMES = 3
_PLAIN = (bool, int, float, str, type(None))  # defaults whose repr is the value that a caller would write

_OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}


@dataclass(frozen=True)
class DescribedParameter:
    """A parameter: its type as documented, and its default as Python writes it. None: it has none."""

    name: str
    type: str
    default: str | None

    @property
    def line(self) -> str:
        return f"{self.name}: {self.type}" + ("" if self.default is None else f" = {self.default}")


@dataclass(frozen=True)
class DocumentedFunction:
    """A function of the corpus with its parameters; ``summary`` is the first sentence of its documentation."""

    name: str
    group: str
    summary: str
    parameters: tuple[DescribedParameter, ...]
    node: TextNode

    @property
    def signature(self) -> str:
        count = f"{len(self.parameters)} parameter{'' if len(self.parameters) == 1 else 's'}"
        return "\n".join([f"{self.name} has {count}", *(parameter.line for parameter in self.parameters)])


def documented_functions() -> list[DocumentedFunction]:
    """The functions that the tools cover, by name.

    They have a name and a short summary of their own, and the documented parameters are those of the code.
    """
    return [known for function in functions() if (known := _documented(function)) is not None]


class AgentTools:
    """The four tools over some documented functions. A tool that fails raises ValueError; the agent reads its text.

    The tools are asynchronous since LlamaIndex runs synchronous ones in threads: the results of parallel calls would
    stand in another order in every run.
    """

    def __init__(self, known: Sequence[DocumentedFunction]) -> None:
        self.functions = {function.name: function for function in known}
        self._names = {function.node.node_id: function.name for function in known}
        nodes = [function.node for function in known]
        self._retriever = bm25_retriever(nodes, _MOST_MATCHES, "demo", "The demo")

    def tools(self) -> list[BaseTool]:
        """The tools as an agent takes them; their descriptions are their docstrings."""
        methods = (self.search_functions, self.read_signature, self.compare_parameters, self.compute)
        return [FunctionTool.from_defaults(async_fn=method, description=method.__doc__) for method in methods]

    async def search_functions(self, query: str, top_k: int = 3) -> str:
        """Search functions by what they do, best first."""
        if not 1 <= top_k <= _MOST_MATCHES:
            raise ValueError(f"top_k is {top_k}, expected 1 to {_MOST_MATCHES}")
        found = [self.functions[name] for name in self.matches(query)[:top_k]]
        return "\n".join(f"{function.name}: {function.summary}" for function in found)

    async def read_signature(self, name: str) -> str:
        """Read the parameters of a function with types and defaults."""
        return self._function(name).signature

    async def compare_parameters(self, first: str, second: str) -> str:
        """Compare the parameters of two functions."""
        one, other = ([parameter.name for parameter in self._function(n).parameters] for n in (first, second))
        lists = {
            "shared": [name for name in one if name in other],
            f"only {first}": [name for name in one if name not in other],
            f"only {second}": [name for name in other if name not in one],
        }
        return "\n".join(f"{title}: {', '.join(names) or 'none'}" for title, names in lists.items())

    async def compute(self, expression: str) -> str:
        """Compute an arithmetic expression of numbers."""
        if len(expression) > _LONGEST_EXPRESSION:
            raise ValueError(f"the expression is longer than {_LONGEST_EXPRESSION} characters")
        try:
            value = _value(ast.parse(expression.strip(), mode="eval").body)
        except SyntaxError:
            raise ValueError(f"{expression!r} is not an arithmetic expression") from None
        except ArithmeticError as error:
            raise ValueError(f"{expression!r} cannot be computed: {error}") from None
        return str(int(value) if isinstance(value, float) and value.is_integer() else value)

    def matches(self, query: str) -> list[str]:
        """The names of the best functions for a query, best first."""
        return [self._names[found.node.node_id] for found in self._retriever.retrieve(query)]

    def near_names(self, name: str) -> list[str]:
        """The known names that are spelled most like ``name``, the nearest first."""
        return difflib.get_close_matches(name, self.functions, n=_NEAR_NAMES)

    def _function(self, name: str) -> DocumentedFunction:
        if name in self.functions:
            return self.functions[name]
        near = ", ".join(self.near_names(name)) or "none"
        raise ValueError(f"there is no function {name}; near names: {near}")


def _documented(function: Function) -> DocumentedFunction | None:
    """The function with its parameters; None where it does not suit the tools."""
    card = parse_card(function.name, function.docstring)
    if function.short_name != function.name or not answerable(card):
        return None
    module, _, name = function.qualified_name.rpartition(".")
    actual = inspect.signature(inspect.unwrap(getattr(importlib.import_module(module), name))).parameters
    defaults = [parameter.default for parameter in actual.values()]
    summary = _first_sentence(function.reference)
    suits = (
        len(actual) <= _MOST_PARAMETERS
        and [parameter.name.lstrip("*") for parameter in card.parameters] == list(actual)
        and all(default is inspect.Parameter.empty or isinstance(default, _PLAIN) for default in defaults)
        and 0 < len(summary) <= _LONGEST_SUMMARY
    )
    if not suits:
        return None
    parameters = tuple(
        DescribedParameter(
            parameter.name, parameter.type, None if default is inspect.Parameter.empty else repr(default)
        )
        for parameter, default in zip(card.parameters, defaults, strict=True)
    )
    return DocumentedFunction(function.name, function.group, summary, parameters, node_of(function))


def _first_sentence(reference: str) -> str:
    summary = " ".join(reference.split("\n\n")[1].split())
    return re.split(r"(?<=\.)\s", summary)[0]


def _value(node: ast.AST) -> Any:
    """The value of numbers, + - * / // % and signs; Python code of any other kind is refused, never run."""
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            return number
        case ast.UnaryOp(op=sign, operand=operand) if type(sign) in _OPERATORS:
            return _OPERATORS[type(sign)](_value(operand))
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in _OPERATORS:
            return _OPERATORS[type(sign)](_value(left), _value(right))
    raise ValueError(f"{ast.unparse(node)!r} is not arithmetic; use numbers, + - * / // % and parentheses")
