"""Docstrings of the public names, from which the API reference is made: first line, and an entry a parameter."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from functools import cached_property
from importlib import import_module
from typing import Any

import pytest
from docstring_parser import DocstringStyle, parse
from docstring_parser.common import DocstringParam

import llama_index_finetune_structured as package
from tests.pages import FRONT_DOORS

VARIADIC = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}


def _is_ours(thing: Any) -> bool:
    """Whether a class or function is defined in this package (Pydantic and typing define some in our classes)."""
    return str(thing.__module__).split(".")[0] == package.__name__


def _function(member: Any) -> Any:
    """The function of a method, property or class method; None for any other member."""
    if isinstance(member, property):
        return member.fget
    if isinstance(member, cached_property):
        return member.func
    function = getattr(member, "__func__", member)
    return function if inspect.isfunction(function) else None


def _name(thing: Any) -> str:
    """Where a class or function is defined: "evaluation.scorecard.Scorecard.slices"."""
    return f"{thing.__module__}.{thing.__qualname__}".removeprefix(f"{package.__name__}.")


def _other_bases(cls: type) -> list[Any]:
    """The base classes of other packages; what they have in common with ``cls`` is documented there."""
    return [base for base in cls.__mro__ if not _is_ours(base)]


def _members(cls: type) -> Iterator[tuple[str, Any]]:
    """(name, function) of the public methods and properties that the package defines, inherited ones included."""
    for base in filter(_is_ours, cls.__mro__):
        for name, member in vars(base).items():
            function = _function(member)
            if function is not None and not name.startswith("_") and _is_ours(function):
                yield name, function


def _public() -> tuple[dict[str, Any], dict[str, Any]]:
    """(what the package documents, what overrides a documented method of another package), each by its name."""
    doors = [package, *(import_module(f"{package.__name__}.{name}") for name in FRONT_DOORS)]
    own: dict[str, Any] = {}
    overriding: dict[str, Any] = {}
    for thing in (getattr(door, name) for door in doors for name in door.__all__):
        own[_name(thing)] = thing
        for name, function in _members(thing) if inspect.isclass(thing) else ():
            overrides = any(hasattr(base, name) for base in _other_bases(thing))
            (overriding if overrides else own)[_name(function)] = function
    return own, overriding


OWN, OVERRIDING = _public()


def _named_parameters(function: Any) -> set[str]:
    parameters = inspect.signature(function).parameters.values()
    names = {p.name for p in parameters if p.kind not in VARIADIC and not p.name.startswith("_")}
    return names - {"self", "cls"}


def _variadic_parameters(function: Any) -> set[str]:
    return {p.name for p in inspect.signature(function).parameters.values() if p.kind in VARIADIC}


def _fields(cls: Any) -> set[str]:
    """The public fields of a Pydantic model or dataclass, without those that a base class documents.

    Other packages' base classes are documented there, our public ones in their own section of the reference.
    """
    if dataclasses.is_dataclass(cls):
        return {field.name for field in dataclasses.fields(cls) if not field.name.startswith("_")}
    public = set(map(id, OWN.values()))
    documented = [*_other_bases(cls), *(base for base in cls.__mro__[1:] if id(base) in public)]
    known = {name for base in documented for name in getattr(base, "model_fields", ())}
    return set(getattr(cls, "model_fields", ())) - known


def _constructor(cls: type) -> Any:
    """The package's own ``__init__`` of a class; None where it has none or a dataclass's."""
    function = None if dataclasses.is_dataclass(cls) else cls.__init__  # type: ignore[misc]
    return function if inspect.isfunction(function) and _is_ours(function) else None


def _expected(thing: Any) -> set[str]:
    """The names that need an entry: the parameters of a function, the parameters and fields of a class."""
    if not inspect.isclass(thing):
        return _named_parameters(thing)
    constructor = _constructor(thing)
    return _fields(thing) | (_named_parameters(constructor) if constructor else set())


def _optional(thing: Any) -> set[str]:
    """The names that may have an entry under ``Args:`` too: ``**kwargs``, fields of other packages' classes."""
    if not inspect.isclass(thing):
        return _variadic_parameters(thing)
    constructor = _constructor(thing)
    variadic = _variadic_parameters(constructor) if constructor else set()
    return variadic | set(getattr(thing, "model_fields", ()))


def _entries(thing: Any) -> list[tuple[str, str]]:
    """("param" or "attribute", name without stars) of each entry under ``Args:`` and ``Attributes:``."""
    docstring = parse(inspect.cleandoc(thing.__doc__ or ""), style=DocstringStyle.GOOGLE)
    entries = [entry for entry in docstring.meta if isinstance(entry, DocstringParam)]
    return [(entry.args[0], entry.arg_name.lstrip("*")) for entry in entries]


@pytest.mark.parametrize("name", sorted(OWN | OVERRIDING))
def test_the_docstring_of_a_public_name_begins_with_a_sentence(name: str) -> None:
    thing = (OWN | OVERRIDING)[name]
    first_line = (thing.__doc__ or "").strip().partition("\n")[0]
    assert first_line.endswith("."), f"{name}: no full stop at the end of the first line: {first_line!r}"


@pytest.mark.parametrize("name", sorted(OWN))
def test_every_parameter_of_a_public_name_has_an_entry(name: str) -> None:
    missing = _expected(OWN[name]) - {entry for _, entry in _entries(OWN[name])}
    assert not missing, f"{name}: no entry under Args: or Attributes: for {', '.join(sorted(missing))}"


@pytest.mark.parametrize("name", sorted(OWN | OVERRIDING))
def test_no_entry_is_of_a_parameter_that_does_not_exist(name: str) -> None:
    thing = (OWN | OVERRIDING)[name]
    entries = _entries(thing)
    parameters = _expected(thing) | _optional(thing)
    allowed = {"param": parameters, "attribute": parameters | set(dir(thing))}
    unknown = [entry for section, entry in entries if entry not in allowed[section]]
    assert not unknown, f"{name}: entries of no parameter or attribute: {', '.join(unknown)}"
    names = [entry for _, entry in entries]
    assert len(names) == len(set(names)), f"{name}: two entries of one name: {', '.join(sorted(names))}"
