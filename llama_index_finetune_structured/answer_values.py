"""JSON values of Pydantic answers, under the names by which their classes validate them, and the classes' schemas."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from functools import lru_cache
from typing import Any

from pydantic import (
    AliasChoices,
    AliasPath,
    BaseModel,
    RootModel,
    Secret,
    SecretBytes,
    SecretStr,
    ValidationError,
)
from pydantic_core import to_jsonable_python

from .errors import ConfigurationError, DatasetError
from .example import MOST_LEVELS, canonical_json, compact_json, is_too_deep

__all__ = ["answer_value", "class_schema", "given_value", "readable_value", "trained_value", "walk_values"]

_SECRETS = (Secret, SecretStr, SecretBytes)
_LISTS = (list, tuple, deque)
_SETS = (set, frozenset)
_PLAIN = frozenset({str, int, float, bool, type(None)})  # most values: neither searched nor named
_PATH_HINT = ": AliasPath is not part of a JSON schema; give the field a plain alias"
_VALIDATOR_HINT = ": its validator does not undo what its type or serializer writes; make the two agree"
_OTHER_VALUE = "is read as another value"
_LONGEST_DECIMAL = 40  # characters; what grammars hold: 20 digits before the point and after it
_DEEP = "the answer contains itself, or is nested too deeply: cut it down, or leave it out"


def class_schema(output_cls: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema of a class of answers, cached; callers must not change it.

    Raises ConfigurationError for what is no Pydantic class, and for a class without a JSON schema.
    """
    if not isinstance(output_cls, type) or not issubclass(output_cls, BaseModel):
        raise ConfigurationError(
            f"output_cls: expected a class of pydantic.BaseModel, found {output_cls!r}; for other types (a list, a "
            "dataclass, an enum), write class Answer(pydantic.RootModel[...])"
        )
    return _schema(output_cls)


@lru_cache(maxsize=256)
def _schema(output_cls: type[BaseModel]) -> dict[str, Any]:
    try:
        schema = output_cls.model_json_schema()
    except (
        Exception
    ) as error:  # Pydantic's own errors, which are no ValueError, and those of the user's methods
        reason = str(error).partition("\n")[0]
        raise ConfigurationError(
            f"{output_cls.__name__} has no JSON schema: {reason}; give the field another type, or annotate it with "
            "pydantic.WithJsonSchema"
        ) from error
    if is_too_deep(schema):
        raise ConfigurationError(
            f"the JSON schema of {output_cls.__name__} has more than {MOST_LEVELS} objects and lists inside each "
            "other: make classes of its inner lists and dicts"
        )
    return schema


def answer_value(answer: BaseModel, *, exclude_unset: bool = False) -> Any:
    """The JSON value of a Pydantic answer, with the field names of its class's JSON schema.

    ``model_dump`` does not give this: it ignores aliases or uses the serialization aliases, and adds computed
    fields. ``exclude_unset``: leave out the fields that were not given. Raises DatasetError where a field cannot be
    dumped.
    """
    return _with_validation_names(answer, _dumped(answer, by_alias=False, exclude_unset=exclude_unset))


def trained_value(
    answer: BaseModel, output_cls: type[BaseModel] | None = None, *, exclude_unset: bool = False
) -> Any:
    """``answer_value``, after a check that ``output_cls`` (None: the answer's class) reads an equal answer from it.

    ``exclude_unset``: leave out the fields that were not given. Raises DatasetError, without values, naming the
    first field that it reads otherwise, and for secrets.
    """
    _refuse_secrets(answer)
    return _equal_value(answer, output_cls or type(answer), exclude_unset=exclude_unset)


def readable_value(answer: BaseModel, output_cls: type[BaseModel]) -> Any:
    """``trained_value`` where ``output_cls`` reads an equal answer from it, else ``answer_value``."""
    try:
        return trained_value(answer, output_cls)
    except DatasetError:
        return answer_value(answer)


def given_value(text: str, output_cls: type[BaseModel]) -> Any:
    """The JSON value of ``text`` as ``output_cls`` writes it: its order of fields, without those not given.

    It is the JSON as given where the class does not read an equal answer from what it writes. Raises ValueError where
    the text does not fit, and for secrets.
    """
    answer = output_cls.model_validate_json(text)
    _refuse_secrets(answer)
    try:
        return _equal_value(answer, output_cls, exclude_unset=True)
    except DatasetError:
        return json.loads(text)


def _equal_value(answer: BaseModel, output_cls: type[BaseModel], *, exclude_unset: bool) -> Any:
    try:
        value = answer_value(answer, exclude_unset=exclude_unset)
        fault = _fault(answer, value, output_cls, exclude_unset)
        if fault is None:
            return value
        # aliases of a TypedDict or NamedTuple cannot be seen in the value
        value = _dumped(answer, by_alias=True, exclude_unset=exclude_unset)
        if _fault(answer, value, output_cls, exclude_unset) is None:
            return value
    except RecursionError:
        fault = _DEEP
    raise DatasetError(fault)


def _dumped(answer: BaseModel, *, by_alias: bool, exclude_unset: bool) -> Any:
    try:
        return answer.model_dump(
            mode="json", by_alias=by_alias, round_trip=True, exclude_unset=exclude_unset, warnings=False
        )
    except Exception as error:  # the user's serializers may raise anything
        raise DatasetError(
            f"{_unwritable_field(answer)}: cannot be written as JSON ({type(error).__name__}); "
            "give the field a type or serializer that JSON can hold"
        ) from error


def _with_validation_names(value: Any, dumped: Any) -> Any:
    """``dumped``, the dump of ``value``, with every field under the name by which its class validates it."""
    if type(value) in _PLAIN:
        return dumped
    if isinstance(value, RootModel):
        return _with_validation_names(value.root, dumped)
    if isinstance(dumped, dict) and (parts := _fields(value)) is not None:
        cls: Any = type(value)
        names = _validation_names(cls)
        return {
            names.get(key, key): _with_validation_names(parts.get(key), part) for key, part in dumped.items()
        }
    if isinstance(value, dict) and isinstance(dumped, dict) and len(value) == len(dumped):
        pairs = zip(value.values(), dumped.items(), strict=True)
        return {key: _with_validation_names(inner, part) for inner, (key, part) in pairs}
    if isinstance(value, (*_LISTS, *_SETS)) and isinstance(dumped, list) and len(value) == len(dumped):
        items = [_with_validation_names(inner, part) for inner, part in zip(value, dumped, strict=True)]
        return _in_order(items) if isinstance(value, _SETS) else items
    if isinstance(value, Decimal) and isinstance(dumped, str) and dumped == str(value):
        plain = f"{value:f}"  # grammars know the limits of decimals without an exponent
        return plain if len(plain) <= _LONGEST_DECIMAL else dumped
    return dumped


def _in_order(items: list[Any]) -> list[Any]:
    """The items of a set sorted: a set's own order differs between processes, and the text is part of an id."""
    try:
        return sorted(items)
    except TypeError:
        return sorted(items, key=canonical_json)


@lru_cache(maxsize=1024)
def _validation_names(cls: Any) -> dict[str, str]:
    """Field -> the first plain alias by which ``cls`` validates it, where there is one."""
    config = getattr(cls, "model_config", None) or getattr(cls, "__pydantic_config__", None) or {}
    if config.get("validate_by_alias") is False:
        return {}
    names = {}
    for name, field in getattr(cls, "__pydantic_fields__", {}).items():
        if plain := [choice for choice in _aliases(field) if isinstance(choice, str)]:
            names[name] = plain[0]
    return names


def _aliases(field: Any) -> list[str | AliasPath]:
    """The names and paths by which a field is validated; empty for its own name alone."""
    alias = getattr(field, "validation_alias", None)
    if isinstance(alias, AliasChoices):
        return list(alias.choices)
    return [] if alias is None else [alias]


def _fields(value: Any) -> dict[str, Any] | None:
    """The fields of a model, then its extra fields, or those of a dataclass; None for any other value.

    Read from the object's own values: deprecated fields warn where they are read as attributes. An object of
    ``model_construct`` may lack some.
    """
    if isinstance(value, BaseModel):
        own = vars(value)
        fields = {name: own[name] for name in type(value).model_fields if name in own}
        return fields | value.__pydantic_extra__ if value.__pydantic_extra__ else fields
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = (field.name for field in dataclasses.fields(value))
        return {name: getattr(value, name) for name in names if hasattr(value, name)}
    return None


def _parts(value: Any) -> Iterable[tuple[Any, Any]]:
    """The values directly inside ``value``, each with its name, key or index; None names that of a root model."""
    if type(value) in _PLAIN:
        return ()
    if isinstance(value, RootModel):
        return [(None, value.root)]
    if (fields := _fields(value)) is not None:
        return fields.items()
    if isinstance(value, Mapping):
        return value.items()
    return enumerate(value) if isinstance(value, (*_LISTS, *_SETS)) else ()


def _join(path: str, name: object) -> str:
    if name is None:
        return path
    return f"{path}.{name}" if path else str(name)


def walk_values(value: Any) -> Iterator[tuple[str, Any]]:
    """``value`` and everything inside it, each once, with its path; outer values come before inner ones."""
    waiting, seen = [("", value)], {id(value)}
    for path, item in waiting:
        yield path, item
        for name, part in _parts(item):
            if id(part) not in seen:
                seen.add(id(part))
                waiting.append((_join(path, name), part))


def _refuse_secrets(answer: BaseModel) -> None:
    waiting: list[Any] = [answer]
    seen = {id(answer)}
    for item in waiting:
        for _, part in _parts(item):
            if type(part) not in _PLAIN and id(part) not in seen:
                seen.add(id(part))
                waiting.append(part)
    if any(isinstance(item, _SECRETS) for item in waiting):
        path, secret = next(
            (path, value) for path, value in walk_values(answer) if isinstance(value, _SECRETS)
        )
        raise DatasetError(
            f"{path}: a secret ({type(secret).__name__}), which is no training data; "
            "leave the field out of the class, or make it plain text that may be trained on"
        )


def _unwritable_field(answer: BaseModel) -> str:
    """The path of the innermost field that cannot be dumped."""
    models = [(path, value) for path, value in walk_values(answer) if isinstance(value, BaseModel)]
    for path, model in reversed(models):
        for name in type(model).model_fields:
            try:
                model.model_dump(mode="json", round_trip=True, include={name}, warnings=False)
            except Exception:
                return path if isinstance(model, RootModel) and path else _join(path, name)
    return "the answer"


def _fault(answer: BaseModel, value: Any, output_cls: type[BaseModel], only_set: bool) -> str | None:
    """Why ``output_cls`` does not read an answer equal to ``answer`` from ``value``, or None if it does."""
    try:
        text = compact_json(value)
    except ValueError:
        numbers = ((path, part) for path, part in walk_values(value) if isinstance(part, float))
        path, number = next(item for item in numbers if not math.isfinite(item[1]))
        return f"{path or 'the answer'}: {number}, for which JSON has no number: leave it out, or allow None"
    try:
        read = output_cls.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        if first["type"] == "missing" and (field := _field_of_a_path(answer)):
            return field + _PATH_HINT
        place = ".".join(map(str, first["loc"])) or "the answer"
        reason = str(first["msg"]).removeprefix("Value error, ")
        return f"{place}: {reason} (when {output_cls.__name__} reads the JSON that it writes)"
    except RecursionError:
        raise
    except Exception as error:  # the user's validators may raise anything
        return f"the answer: {type(error).__name__} when {output_cls.__name__} reads the JSON that it writes"
    return _difference(answer, read, "", only_set)


def _field_of_a_path(answer: BaseModel) -> str | None:
    """The path of the first field that is read by an AliasPath alone."""
    for path, model in walk_values(answer):
        cls: Any = type(model)
        for name, field in getattr(cls, "__pydantic_fields__", {}).items():
            if _is_read_by_path(field) and name not in _validation_names(cls):
                return _join(path, name)
    return None


def _is_read_by_path(field: Any) -> bool:
    return any(isinstance(alias, AliasPath) for alias in _aliases(field))


def _difference(given: Any, read: Any, path: str, only_set: bool) -> str | None:
    """The first place at which ``read`` differs from ``given``, with the reason; fields not set are left out."""
    if type(given) is type(read) and type(given) in _PLAIN and given == read:
        return None
    if isinstance(given, RootModel) and type(given) is type(read):
        return _difference(given.root, read.root, path, only_set)
    fields, others = _fields(given), _fields(read)
    if fields is not None:
        if others is None or not isinstance(given, type(read)) or _names(given) != _names(read):
            return _other_kind(given, read, path)
        return _field_difference(given, fields, others, path, only_set)
    if isinstance(given, Mapping) and isinstance(read, Mapping) and given.keys() == read.keys():
        pairs = [(key, part, read[key]) for key, part in given.items()]
    elif isinstance(given, _LISTS) and isinstance(read, _LISTS) and len(given) == len(read):
        pairs = [(index, *both) for index, both in enumerate(zip(given, read, strict=True))]
    elif _is_equal(given, read):
        return None
    elif isinstance(given, Mapping) and isinstance(read, Mapping):
        return (
            f"{path or 'the answer'}: its keys are read as others (JSON has text alone); give the keys a type"
        )
    elif type(given) is type(read):
        return f"{path or 'the answer'}: {_OTHER_VALUE}{_VALIDATOR_HINT}"
    else:
        return _other_kind(given, read, path)
    faults = (_difference(part, other, _join(path, name), only_set) for name, part, other in pairs)
    return next(filter(None, faults), None)


def _names(value: Any) -> list[str]:
    """The names of the fields that the class of a model or dataclass has."""
    if isinstance(value, BaseModel):
        return list(type(value).model_fields)
    return [field.name for field in dataclasses.fields(value)]


def _other_kind(given: Any, read: Any, path: str) -> str:
    kinds = f"is a {type(given).__name__} and is read as a {type(read).__name__}"
    return f"{path or 'the answer'}: {kinds}; give the field the type of its value"


def _field_difference(
    given: Any, fields: dict[str, Any], others: dict[str, Any], path: str, only_set: bool
) -> str | None:
    """``_difference`` of two models or dataclasses of the same class by their fields."""
    declared = getattr(type(given), "__pydantic_fields__", {})
    for name, part in fields.items():
        is_default = isinstance(given, BaseModel) and name not in given.model_fields_set
        if is_default and (only_set or getattr(declared.get(name), "exclude", None)):
            continue
        place = _join(path, name)
        if name not in others:
            return f"{place}: is not read back; give the class a field of that name"
        if fault := _difference(part, others[name], place, only_set):
            other_value = f"{place}: {_OTHER_VALUE}"
            if getattr(declared.get(name), "exclude", None):
                return f"{other_value}: exclude=True leaves it out of JSON; drop exclude, or the value"
            if _is_read_by_path(declared.get(name)):
                return other_value + _PATH_HINT
            return fault
    return None


def _is_equal(given: Any, read: Any) -> bool:
    """Whether two values without fields or items are equal; NaN is, and points in time of different zones are.

    A text is equal to what is written as the same text: a union may read it as the date that it names.
    """
    try:
        if _holds(given == read) or (_holds(given != given) and _holds(read != read)):
            return True
        compares_identity: bool = getattr(type(given), "__eq__", None) is object.__eq__
        if type(given) is type(read) and compares_identity:
            return bool(getattr(given, "__dict__", None) == getattr(read, "__dict__", None))
        # Python holds a time in a changed hour unequal to that of every other zone.
        if isinstance(given, datetime.datetime):
            return given.isoformat() == getattr(read, "isoformat", str)()
        return type(given) is str and bool(to_jsonable_python(read) == given)
    except Exception:  # an own __eq__
        return False


def _holds(comparison: Any) -> bool:
    """The truth of a comparison: of arrays and tables, that it holds for every item."""
    every = getattr(comparison, "all", None)
    return bool(every(axis=None) if every is not None else comparison)
