"""Build a Pydantic class from the description of an answer in a YAML file."""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterable
from datetime import date, datetime, time
from decimal import Decimal
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
from yaml.reader import ReaderError

from ...descriptors import read_text_file
from ...errors import ConfigurationError, MissingDependencyError
from ...written_values.annotation import AsWritten, Money
from .mistakes import key_reason, type_suggestion, value_reason, yaml_fix
from .rules import rule_faults, rule_keyword

__all__ = ["yaml_schema_class"]

_SCALARS: dict[str, Any] = {
    "string": str, "integer": int, "number": float, "decimal": Decimal, "money": Money, "boolean": bool,
    "date": date, "datetime": datetime, "time": time,
}  # fmt: skip
_WRITTEN = {
    "decimal",
    "money",
    "date",
    "datetime",
    "time",
}  # the types that the file's locales are for; of a field also numbers
_LIST = re.compile(r"list +of +(?P<item>.+)")
_JSON_SCHEMA_KEYS = {"$schema", "$defs", "properties"}
_MAX_BYTES = 200_000  # chosen: about 2,000 fields, which are read in some seconds
_MAX_DEPTH = 16  # chosen: an enum of a field of a type is at 6
_LONGEST_TYPE = 200  # characters; chosen: some twenty lists of lists
_MOST_COMPARED = (
    10_000  # errors x names; chosen: about a second of searching for names that may have been meant
)
_KEY_TAGS = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge")
_KeyPath = tuple[str | int, ...]  # the keys and list positions that lead to a value of the file
_Choices = Annotated[list[StrictStr | StrictInt], Field(min_length=1)]
_Locales = list[StrictStr]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Field(_Strict):
    """A field as the file has it; ``year: integer?`` is short for ``year: {type: integer, optional: true}``."""

    type: StrictStr | None = None
    enum: _Choices | None = None
    description: StrictStr | None = None
    optional: bool = False
    min: StrictInt | StrictFloat | None = None
    max: StrictInt | StrictFloat | None = None
    locales: _Locales = []

    @validator(mode="before")
    @classmethod
    def _expand_short_form(cls, value: Any) -> Any:
        value = {"type": value} if isinstance(value, str) else value
        if not isinstance(value, dict):
            raise ValueError("expected a type, or a mapping of type, description, optional")
        if ("type" in value) == ("enum" in value):
            raise ValueError("expected either 'type' or 'enum'")
        kind = value.get("type")
        if isinstance(kind, str) and kind.endswith("?"):
            return {**value, "type": kind[:-1].strip(), "optional": True}
        return value


class _Type(_Strict):
    """An entry under ``types``: an object or an enumeration."""

    description: StrictStr | None = None
    fields: Annotated[dict[StrictStr, _Field], Field(min_length=1)] | None = None
    enum: _Choices | None = None

    @validator(mode="after")
    def _check_one_kind(self) -> _Type:
        if (self.fields is None) == (self.enum is None):
            raise ValueError("expected either 'fields' or 'enum'")
        return self


class _Rule(_Strict):
    """A rule that values add up to another one: ``{sum: items[].amount, equals: total, tolerance: 0.01}``."""

    sum: StrictStr | Annotated[list[StrictStr], Field(min_length=1)]
    equals: StrictStr
    tolerance: Annotated[StrictInt | StrictFloat, Field(ge=0)] = 0

    @property
    def parts(self) -> list[str]:
        """The paths of the values that are added."""
        return [self.sum] if isinstance(self.sum, str) else self.sum


class _File(_Strict):
    """The whole file."""

    name: StrictStr
    description: StrictStr | None = None
    locales: _Locales = []
    fields: Annotated[dict[StrictStr, _Field], Field(min_length=1)]
    types: dict[StrictStr, _Type] = {}
    rules: list[_Rule] = []


# Enum values stay text: YAML 1.1 reads ``no`` as false, ``2024-01-01`` as a date, ``01234`` as an octal number and
# ``12:30`` as 750. Numbers are those of JSON.
_RESOLVERS = {
    first: [(tag, form) for tag, form in forms if tag.endswith((":null", ":merge"))]
    for first, forms in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader: Any = type("_Loader", (yaml.SafeLoader,), {"yaml_implicit_resolvers": _RESOLVERS})
for _tag, _form, _first in (
    ("bool", r"(?:true|false)$", "tf"),
    ("int", r"-?(?:0|[1-9][0-9]{0,17})$", "-0123456789"),
    ("float", r"-?(?:0|[1-9][0-9]{0,17})(?:\.[0-9]+)?(?:[eE][-+]?[0-9]{1,2})?$", "-0123456789"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_form), list(_first))


def yaml_schema_class(path: Path) -> type[BaseModel]:
    """The class that the file describes.

    Raises ConfigurationError with ``file:line`` and field of every error found.
    """
    lines: dict[_KeyPath, int] = {}
    value = _parse(path, lines)
    if isinstance(value, dict) and _JSON_SCHEMA_KEYS & set(value):
        raise ConfigurationError(
            f"{path}: is a JSON Schema; convert it to a class (for example with datamodel-codegen) and give "
            "file.py:Class, or write name and fields"
        )
    try:
        file = _File.model_validate(value)
    except ValidationError as error:
        details: list[Any] = error.errors(include_url=False)
        raise _joined(_error(path, lines, detail["loc"], _reason(detail)) for detail in details) from error
    return _ClassBuilder(path, file, lines).build()


def _reason(detail: Any) -> str:
    place = detail["loc"]
    if detail["type"] == "extra_forbidden":
        return key_reason(str(place[-1]), in_file=len(place) == 1)
    return value_reason(detail)


def _error(path: Path, lines: dict[_KeyPath, int], keys: _KeyPath, reason: str) -> ConfigurationError:
    """An error at the innermost of ``keys`` that is in the file: Pydantic's go on into union branches."""
    known = next(keys[:n] for n in range(len(keys), -1, -1) if keys[:n] in lines)
    where = ".".join(map(str, known)) or "the file"
    name = f"{where}.{keys[-1]}" if reason.startswith("missing") else where
    return ConfigurationError(f"{path}:{lines[known]}: {name}: {reason}")


def _joined(errors: Iterable[ConfigurationError]) -> ConfigurationError:
    return ConfigurationError("\n".join(dict.fromkeys(map(str, errors))))


def _parse(path: Path, lines: dict[_KeyPath, int]) -> Any:
    """The file as plain values; ``lines`` is filled with the line of each key, counted from 1."""
    try:
        text = read_text_file(path, max_bytes=_MAX_BYTES)
        _refuse_unused_yaml(path, text)
        loader = _Loader(text)
        node = loader.get_single_node()
        _record_lines(path, node, (), 1, lines)
        return None if node is None else loader.construct_document(node)
    except OSError as error:
        raise ConfigurationError(f"schema {path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path}: not UTF-8 text (byte {error.start + 1})") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigurationError(
            f"{path}:{line}: not valid YAML ({error.problem}){yaml_fix(str(error.problem))}"
        ) from error
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigurationError(
            f"{path}:{line}: not valid YAML (unacceptable character #x{error.character:04x}); remove it"
        ) from error
    except (yaml.YAMLError, ValueError, KeyError, AttributeError, RecursionError) as error:
        if isinstance(error, ConfigurationError):
            raise
        raise ConfigurationError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from error


def _refuse_unused_yaml(path: Path, text: str) -> None:
    """Raises ConfigurationError for an alias, a tag, or brackets or indentation far deeper than a schema has them.

    They are found while the file is read, as the time that PyYAML takes grows with the square of the depth.
    """
    depth = 0
    for event in yaml.parse(text, _Loader):
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            raise ConfigurationError(
                f"{path}:{line}: YAML aliases (*name) are not supported; write the value out, or give it a name "
                "under types"
            )
        if getattr(event, "tag", None) not in (None, "!"):
            raise ConfigurationError(f"{path}:{line}: YAML tags ({event.tag}) are not supported; remove it")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            raise ConfigurationError(
                f"{path}:{line}: more than {_MAX_DEPTH} levels of brackets or indentation; expected name and fields"
            )


def _record_lines(path: Path, node: Any, keys: _KeyPath, line: int, lines: dict[_KeyPath, int]) -> None:
    """Fill ``lines``. Raises ConfigurationError for a duplicate key, which PyYAML would silently accept."""
    lines[keys] = line
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner, key_line = (*keys, str(key.value)), key.start_mark.line + 1
            if key.tag not in _KEY_TAGS:
                found = key.value if isinstance(key, yaml.ScalarNode) else f"a {key.id}"
                raise ConfigurationError(
                    f"{path}:{key_line}: {found}: expected a text as key; choose another name, or write it in quotes"
                )
            if inner in lines:
                raise ConfigurationError(f"{path}:{key_line}: {'.'.join(map(str, inner))}: duplicate key")
            _record_lines(path, value, inner, key_line, lines)
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            _record_lines(path, value, (*keys, number), value.start_mark.line + 1, lines)


class _ClassBuilder:
    """Builds the classes that a file describes, each once.

    In its methods ``keys`` lead to the described value, for error messages; ``enclosing`` are the names of the
    types being built around it, to find a type that contains itself.
    """

    def __init__(self, path: Path, file: _File, lines: dict[_KeyPath, int]) -> None:
        self._path, self._file, self._lines = path, file, lines
        self._built: dict[str, Any] = {}
        self._errors: list[ConfigurationError] = []

    def build(self) -> type[BaseModel]:
        file = self._file
        for name in file.types:
            if name in _SCALARS or name == file.name or name.startswith("list of "):
                taken = "the answer itself" if name == file.name else "a built-in type"
                self._errors.append(self._error(("types", name), f"{taken} has this name; choose another"))
            else:
                self._named_type(name, ("types", name), ())
        built = self._class(file.name, file.description, file.fields, (), ())
        if not self._errors:
            for number, key, reason in rule_faults(file.rules, built):
                self._errors.append(self._error(("rules", number, key), reason))
        if self._errors:
            raise _joined(self._errors)
        return built

    def _error(self, keys: _KeyPath, reason: str) -> ConfigurationError:
        return _error(self._path, self._lines, keys, reason)

    def _class(
        self,
        name: str,
        description: str | None,
        fields: dict[str, _Field],
        keys: _KeyPath,
        enclosing: tuple[str, ...],
    ) -> type[BaseModel]:
        if not name.isidentifier():
            raise self._error(
                (*keys, "name"), f"{name!r} cannot be the name of a class; use letters, digits and _"
            )
        definitions: dict[str, Any] = {}
        for key, field in fields.items():
            field_keys = (*keys, "fields", key)
            try:
                definitions[key] = self._field(key, field, field_keys, enclosing)
            except ConfigurationError as error:
                self._errors.append(error)
        config = ConfigDict(protected_namespaces=())
        if not enclosing and not keys and self._file.rules:
            config["json_schema_extra"] = rule_keyword(self._file.rules)
        return create_model(name, __config__=config, __doc__=description, **definitions)

    def _field(self, key: str, field: _Field, keys: _KeyPath, enclosing: tuple[str, ...]) -> tuple[Any, Any]:
        if not key.isidentifier() or keyword.iskeyword(key) or key.startswith("_") or hasattr(BaseModel, key):
            raise self._error(keys, f"{key!r} cannot be the name of a field; choose another name")
        kind: Any = (
            Literal[tuple(field.enum)]
            if field.enum
            else self._type(field.type or "", (*keys, "type"), enclosing, field.locales)
        )
        kind = self._limited(kind, field, keys)
        if field.optional:
            return kind | None, Field(default=None, description=field.description)
        return kind, Field(description=field.description)

    def _limited(self, kind: Any, field: _Field, keys: _KeyPath) -> Any:
        """``kind`` with ``min`` and ``max`` applied to a number's value, a string's or a list's length."""
        if field.min is None and field.max is None:
            return kind
        if field.min is not None and field.max is not None and field.min > field.max:
            raise self._error((*keys, "min"), f"{field.min} is greater than max, {field.max}")
        whole = field.type == "integer"
        for end, limit in (("min", field.min), ("max", field.max)):
            if whole and isinstance(limit, float):
                raise self._error((*keys, end), f"expected an integer, as the field is one, found {limit}")
        if field.type in ("integer", "number", "decimal"):
            return Annotated[kind, Field(ge=field.min, le=field.max)]
        if field.type != "string" and not _LIST.fullmatch(field.type or ""):
            raise self._error(
                keys,
                "min and max apply only to integer, number, decimal, string (characters) and lists (items)",
            )
        lengths: dict[str, Any] = {"min": field.min, "max": field.max}
        for end, length in lengths.items():
            if length is not None and (isinstance(length, float) or length < 0):
                raise self._error((*keys, end), f"expected an integer of at least 0, found {length}")
        return Annotated[kind, Field(min_length=lengths["min"], max_length=lengths["max"])]

    def _scalar(self, name: str, keys: _KeyPath, own: list[str]) -> Any:
        """A built-in type, as it is written in the field's locales, or else those of the file."""
        locales = own or (self._file.locales if name in _WRITTEN else [])
        if not locales:
            return _SCALARS[name]
        if name not in _WRITTEN | {"integer", "number"}:
            where = (*keys[:-1], "locales")
            raise self._error(
                where, "locales apply only to decimal, money, date, datetime, time, integer and number"
            )
        try:
            return Annotated[_SCALARS[name], AsWritten(*locales)]
        except MissingDependencyError:
            raise
        except ConfigurationError as error:
            raise self._error((*keys[:-1], "locales") if own else ("locales",), str(error)) from error

    def _type(self, text: str, keys: _KeyPath, enclosing: tuple[str, ...], locales: list[str]) -> Any:
        if len(text) > _LONGEST_TYPE:
            raise self._error(keys, f"a type of {len(text)} characters, expected at most {_LONGEST_TYPE}")
        item = _LIST.fullmatch(text)
        if item:
            inner: Any = self._type(item["item"], keys, enclosing, locales)
            return list[inner]
        if text in _SCALARS:
            return self._scalar(text, keys, locales)
        if text in self._file.types:
            return self._named_type(text, keys, enclosing)
        known = ", ".join([*_SCALARS, "list of ...", *self._file.types])
        names = [*_SCALARS, *self._file.types]
        meant = type_suggestion(text, names) if len(self._errors) * len(names) < _MOST_COMPARED else ""
        raise self._error(keys, f"unknown type {text!r}, expected one of: {known}{meant}")

    def _named_type(self, name: str, keys: _KeyPath, enclosing: tuple[str, ...]) -> Any:
        if name in enclosing:
            raise self._error(keys, f"{name!r} contains itself; write this one as a class, file.py:Class")
        if len(enclosing) > _MAX_DEPTH:
            raise self._error(
                keys, f"more than {_MAX_DEPTH} types inside each other; expected a flatter answer"
            )
        if name not in self._built:
            described = self._file.types[name]
            self._built[name] = (
                Literal[tuple(described.enum)]
                if described.enum
                else self._class(
                    name, described.description, described.fields or {}, ("types", name), (*enclosing, name)
                )
            )
        return self._built[name]
