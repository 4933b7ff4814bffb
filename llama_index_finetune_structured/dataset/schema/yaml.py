"""A YAML file that says what an answer looks like -> a Pydantic class."""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterable
from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictFloat,
    StrictInt,
    StrictStr,
    ValidationError,
    create_model,
)
from pydantic import model_validator as validator

from ...errors import ConfigurationError

__all__ = ["class_of"]

_SIMPLE: dict[str, Any] = {
    "string": str, "integer": int, "number": float, "boolean": bool, "date": date, "datetime": datetime,
}  # fmt: skip
_LIST = re.compile(r"list +of +(?P<item>.+)")
_JSON_SCHEMA = {"$schema", "$defs", "properties"}
Key = tuple[str | int, ...]
Choices = Annotated[list[StrictStr | StrictInt], Field(min_length=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Field(_Strict):
    """``year: integer?`` is short for ``year: {type: integer, optional: true}``."""

    type: StrictStr | None = None
    enum: Choices | None = None
    description: StrictStr | None = None
    optional: bool = False
    min: StrictInt | StrictFloat | None = None
    max: StrictInt | StrictFloat | None = None

    @validator(mode="before")
    @classmethod
    def _short_form(cls, given: Any) -> Any:
        given = {"type": given} if isinstance(given, str) else given
        if not isinstance(given, dict):
            raise ValueError("expected a type, or a mapping of type, description, optional")
        if ("type" in given) == ("enum" in given):
            raise ValueError("expected either 'type' or 'enum'")
        kind = given.get("type")
        if isinstance(kind, str) and kind.endswith("?"):
            return {**given, "type": kind[:-1].strip(), "optional": True}
        return given


class _Type(_Strict):
    description: StrictStr | None = None
    fields: Annotated[dict[StrictStr, _Field], Field(min_length=1)] | None = None
    enum: Choices | None = None

    @validator(mode="after")
    def _one_kind(self) -> _Type:
        if (self.fields is None) == (self.enum is None):
            raise ValueError("expected either 'fields' or 'enum'")
        return self


class _File(_Strict):
    name: StrictStr
    description: StrictStr | None = None
    fields: Annotated[dict[StrictStr, _Field], Field(min_length=1)]
    types: dict[StrictStr, _Type] = {}


# Words stay words: YAML 1.1 takes ``no`` for false and ``2024-01-01`` for a date.
_RESOLVERS = {
    first: [(tag, form) for tag, form in forms if not tag.endswith((":timestamp", ":bool"))]
    for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader: Any = type("_Loader", (yaml.SafeLoader,), {"yaml_implicit_resolvers": _RESOLVERS})
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"(?:true|false)$"), list("tf"))


def class_of(path: Path) -> type[BaseModel]:
    """The class that the file describes. Raises ConfigurationError: ``file:line`` and field of all that is wrong."""
    lines: dict[Key, int] = {}
    value = _parsed(path, lines)
    if isinstance(value, dict) and _JSON_SCHEMA & set(value):
        raise ConfigurationError(
            f"{path}: is a JSON Schema; turn it into a class (datamodel-codegen does) and give file.py:Class, "
            "or write name and fields"
        )
    try:
        file = _File.model_validate(value)
    except ValidationError as error:
        found = error.errors(include_url=False)
        raise _all(_problem(path, lines, one["loc"], _reason(one)) for one in found) from error
    return _Builder(path, file, lines).whole()


def _reason(found: Any) -> str:
    if found["type"] == "extra_forbidden":
        return (
            "is not known here; name, description, fields, types, or of a field: type, enum, optional, min, max "
            "(a text with a comma or a colon in it needs quotes)"
        )
    return str(found["msg"]).removeprefix("Value error, ")


def _problem(path: Path, lines: dict[Key, int], place: Key, reason: str) -> ConfigurationError:
    known = next(place[:n] for n in range(len(place), -1, -1) if place[:n] in lines)
    where = ".".join(map(str, known)) or "the file"
    named = f"{where}.{place[-1]}" if reason.startswith("Field required") else where
    return ConfigurationError(f"{path}:{lines[known]}: {named}: {reason}")


def _all(problems: Iterable[ConfigurationError]) -> ConfigurationError:
    return ConfigurationError("\n".join(dict.fromkeys(map(str, problems))))


def _parsed(path: Path, lines: dict[Key, int]) -> Any:
    """The file as plain values; ``lines`` gets the line of each key, counted from 1."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, _Loader)):
            raise ConfigurationError(f"{path}: YAML aliases (*name) are not taken; write it out")
        loader = _Loader(text)
        node = loader.get_single_node()
        _note_lines(path, node, (), 1, lines)
        return None if node is None else loader.construct_document(node)
    except OSError as error:
        raise ConfigurationError(f"schema {path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: not UTF-8 text (byte {error.start + 1})") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigurationError(f"{path}:{line}: not valid YAML ({error.problem})") from error
    except (yaml.YAMLError, ValueError, KeyError, AttributeError, RecursionError) as error:
        if isinstance(error, ConfigurationError):
            raise
        raise ConfigurationError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from error


def _note_lines(path: Path, node: Any, place: Key, line: int, lines: dict[Key, int]) -> None:
    lines[place] = line
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here, at = (*place, str(key.value)), key.start_mark.line + 1
            if here in lines:
                raise ConfigurationError(f"{path}:{at}: {'.'.join(map(str, here))}: stands here twice")
            _note_lines(path, value, here, at, lines)
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            _note_lines(path, value, (*place, number), value.start_mark.line + 1, lines)


class _Builder:
    """Classes from their descriptions, each built once."""

    def __init__(self, path: Path, file: _File, lines: dict[Key, int]) -> None:
        self._path, self._file, self._lines = path, file, lines
        self._built: dict[str, Any] = {}
        self._problems: list[ConfigurationError] = []

    def whole(self) -> type[BaseModel]:
        for name in self._file.types:
            self._named(name, ("types", name), ())
        file = self._file
        whole = self._class(file.name, file.description, file.fields, (), ())
        if self._problems:
            raise _all(self._problems)
        return whole

    def _error(self, place: Key, reason: str) -> ConfigurationError:
        return _problem(self._path, self._lines, place, reason)

    def _class(
        self,
        name: str,
        description: str | None,
        fields: dict[str, _Field],
        place: Key,
        inside: tuple[str, ...],
    ) -> type[BaseModel]:
        if not name.isidentifier():
            raise self._error((*place, "name"), f"{name!r} cannot name a class; use letters, digits and _")
        made: dict[str, Any] = {}
        for key, field in fields.items():
            here = (*place, "fields", key)
            try:
                made[key] = self._field(key, field, here, inside)
            except ConfigurationError as error:
                self._problems.append(error)
        config = ConfigDict(protected_namespaces=())
        return create_model(name, __config__=config, __doc__=description, **made)

    def _field(self, key: str, field: _Field, place: Key, inside: tuple[str, ...]) -> tuple[Any, Any]:
        if not key.isidentifier() or keyword.iskeyword(key) or key.startswith("_") or hasattr(BaseModel, key):
            raise self._error(place, f"{key!r} cannot name a field; choose another name")
        kind: Any = (
            Literal[tuple(field.enum)]
            if field.enum
            else self._type(field.type or "", (*place, "type"), inside)
        )
        kind = self._limited(kind, field, place)
        if field.optional:
            return kind | None, Field(default=None, description=field.description)
        return kind, Field(description=field.description)

    def _limited(self, kind: Any, field: _Field, place: Key) -> Any:
        """``min`` and ``max`` are of a number's value, a string's characters or a list's items."""
        if field.min is None and field.max is None:
            return kind
        if field.min is not None and field.max is not None and field.min > field.max:
            raise self._error((*place, "min"), f"{field.min} is above max, {field.max}")
        if field.type in ("integer", "number"):
            return Annotated[kind, Field(ge=field.min, le=field.max)]
        if field.type != "string" and not _LIST.fullmatch(field.type or ""):
            raise self._error(
                place, "min and max limit integer, number, string (characters) and lists (items)"
            )
        lengths: dict[str, Any] = {"min": field.min, "max": field.max}
        for end, length in lengths.items():
            if length is not None and (isinstance(length, float) or length < 0):
                raise self._error((*place, end), f"expected a whole number from 0, not {length}")
        return Annotated[kind, Field(min_length=lengths["min"], max_length=lengths["max"])]

    def _type(self, text: str, place: Key, inside: tuple[str, ...]) -> Any:
        item = _LIST.fullmatch(text)
        if item:
            inner: Any = self._type(item["item"], place, inside)
            return list[inner]
        if text in _SIMPLE:
            return _SIMPLE[text]
        if text in self._file.types:
            return self._named(text, place, inside)
        known = ", ".join([*_SIMPLE, "list of ...", *self._file.types])
        raise self._error(place, f"no type {text!r}; there are: {known}")

    def _named(self, name: str, place: Key, inside: tuple[str, ...]) -> Any:
        if name in inside:
            raise self._error(place, f"{name!r} would hold itself; write this one as a class, file.py:Class")
        if name not in self._built:
            given = self._file.types[name]
            self._built[name] = (
                Literal[tuple(given.enum)]
                if given.enum
                else self._class(
                    name, given.description, given.fields or {}, ("types", name), (*inside, name)
                )
            )
        return self._built[name]
