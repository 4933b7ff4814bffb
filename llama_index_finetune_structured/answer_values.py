"""JSON values of Pydantic answers, under the names by which their classes validate them."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
from collections import deque
from collections.abc import Iterator, Mapping
from decimal import Decimal
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

from .errors import DatasetError
from .example import canonical_json, compact_json

__all__ = ["answer_value", "given_value", "trained_value"]

_SECRETS = (Secret, SecretStr, SecretBytes)
_LISTS = (list, tuple, deque)
_SETS = (set, frozenset)
_LONGEST_DECIMAL = 40  # characters; what grammars hold: 20 digits before the point and after it
_DEEP = "the answer contains itself, or is nested too deeply"


def answer_value(answer: BaseModel, *, exclude_unset: bool = False) -> Any:
    """The JSON value of a Pydantic answer, with the field names of its class's JSON schema.

    ``model_dump`` does not give this: it ignores aliases or uses the serialization aliases, and adds computed
    fields. ``exclude_unset``: leave out the fields that were not given. Raises DatasetError where a field cannot be
    dumped.
    """
    return _with_validation_names(answer, _dumped(answer, by_alias=False, exclude_unset=exclude_unset))


def trained_value(answer: BaseModel, output_cls: type[BaseModel] | None = None) -> Any:
    """``answer_value``, after a check that ``output_cls`` (None: the answer's class) reads an equal answer from it.

    Raises DatasetError, without values, naming the first field that it reads otherwise, and for secrets.
    """
    return _checked(answer, output_cls or type(answer), exclude_unset=False)


def given_value(text: str, output_cls: type[BaseModel]) -> Any:
    """The JSON value of ``text`` as ``output_cls`` writes it: its order of fields, without those not given.

    It is the JSON as given where the class does not read an equal answer from what it writes. Raises ValueError where
    the text does not fit, and for secrets.
    """
    answer = output_cls.model_validate_json(text)
    _refuse_secrets(answer)
    try:
        return _checked(answer, output_cls, exclude_unset=True)
    except DatasetError:
        return json.loads(text)


def _checked(answer: BaseModel, output_cls: type[BaseModel], *, exclude_unset: bool) -> Any:
    try:
        value = answer_value(answer, exclude_unset=exclude_unset)
        _refuse_secrets(answer)
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
    if isinstance(value, RootModel):
        return _with_validation_names(value.root, dumped)
    if _field_names(value) is not None and isinstance(dumped, dict):
        parts = dict(_fields(value))
        return {
            _validation_name(type(value), key): _with_validation_names(parts.get(key), part)
            for key, part in dumped.items()
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


def _validation_name(cls: Any, key: str) -> str:
    """The first plain alias by which ``cls`` validates the field ``key``, or ``key`` itself."""
    field = getattr(cls, "__pydantic_fields__", {}).get(key)
    config = getattr(cls, "model_config", None) or getattr(cls, "__pydantic_config__", None) or {}
    if field is None or config.get("validate_by_alias") is False:
        return key
    alias = field.validation_alias
    choices = alias.choices if isinstance(alias, AliasChoices) else [alias]
    return next((choice for choice in choices if isinstance(choice, str)), key)


def _field_names(value: Any) -> list[str] | None:
    """The fields of a model or dataclass; None for any other value."""
    if isinstance(value, BaseModel):
        return list(type(value).model_fields)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [field.name for field in dataclasses.fields(value)]
    return None


def _fields(value: Any) -> Iterator[tuple[str, Any]]:
    """Name and value of each field of a model or dataclass, then of a model's extra fields."""
    names = _field_names(value) or ()
    if isinstance(
        value, BaseModel
    ):  # getattr would warn of a deprecated field; ``model_construct`` may leave some out
        held = vars(value)
        yield from ((name, held[name]) for name in names if name in held)
        yield from (value.__pydantic_extra__ or {}).items()
    else:
        yield from ((name, getattr(value, name)) for name in names if hasattr(value, name))


def _parts(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The values directly inside ``value``, each with its path."""
    if isinstance(value, RootModel):
        yield path, value.root
    elif _field_names(value) is not None:
        yield from ((_join(path, name), part) for name, part in _fields(value))
    elif isinstance(value, Mapping):
        yield from ((_join(path, key), part) for key, part in value.items())
    elif isinstance(value, (*_LISTS, *_SETS)):
        yield from ((_join(path, index), part) for index, part in enumerate(value))


def _join(path: str, name: object) -> str:
    return f"{path}.{name}" if path else str(name)


def _walk(value: Any) -> Iterator[tuple[str, Any]]:
    """``value`` and everything inside it, each once, with its path; outer values come before inner ones."""
    waiting, seen = [("", value)], {id(value)}
    for path, item in waiting:
        yield path, item
        for place, part in _parts(item, path):
            if id(part) not in seen:
                seen.add(id(part))
                waiting.append((place, part))


def _refuse_secrets(answer: BaseModel) -> None:
    for path, value in _walk(answer):
        if isinstance(value, _SECRETS):
            raise DatasetError(
                f"{path}: a secret ({type(value).__name__}), which is no training data; "
                "leave the field out of the class, or make it plain text that may be trained on"
            )


def _unwritable_field(answer: BaseModel) -> str:
    """The path of the innermost field that cannot be dumped."""
    models = [(path, value) for path, value in _walk(answer) if isinstance(value, BaseModel)]
    for path, model in reversed(models):
        for name in _field_names(model) or ():
            try:
                model.model_dump(mode="json", round_trip=True, include={name}, warnings=False)
            except Exception:
                return path if isinstance(model, RootModel) and path else _join(path, name)
    return "the answer"


def _fault(answer: BaseModel, value: Any, output_cls: type[BaseModel], only_set: bool) -> str | None:
    """Why ``output_cls`` does not read an answer equal to ``answer`` from ``value``, or None if it does."""
    for path, number in _walk(value):
        if isinstance(number, float) and not math.isfinite(number):
            return f"{path or 'the answer'}: {number}, for which JSON has no number"
    try:
        read = output_cls.model_validate_json(compact_json(value))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "the answer"
        reason = str(first["msg"]).removeprefix("Value error, ")
        return f"{place}: {reason} (when {output_cls.__name__} reads the JSON that it writes)"
    except RecursionError:
        raise
    except Exception as error:  # the user's validators may raise anything
        return f"the answer: {type(error).__name__} when {output_cls.__name__} reads the JSON that it writes"
    return _difference(answer, read, "", only_set)


def _difference(given: Any, read: Any, path: str, only_set: bool) -> str | None:
    """The first place at which ``read`` differs from ``given``, with the reason; fields not set are left out."""
    if isinstance(given, RootModel) and type(given) is type(read):
        return _difference(given.root, read.root, path, only_set)
    names = _field_names(given)
    if names is not None:
        if _field_names(read) != names or not isinstance(given, type(read)):
            kinds = f"is a {type(given).__name__} and is read as a {type(read).__name__}"
            return f"{path or 'the answer'}: {kinds}; give the field the type of its value"
        return _field_difference(given, read, path, only_set)
    if isinstance(given, Mapping) and isinstance(read, Mapping) and given.keys() == read.keys():
        pairs = [(_join(path, key), part, read[key]) for key, part in given.items()]
    elif isinstance(given, _LISTS) and isinstance(read, _LISTS) and len(given) == len(read):
        parts = zip(given, read, strict=True)
        pairs = [(_join(path, index), part, other) for index, (part, other) in enumerate(parts)]
    else:
        return None if _is_equal(given, read) else f"{path or 'the answer'}: is read as another value"
    return next((fault for place, a, b in pairs if (fault := _difference(a, b, place, only_set))), None)


def _field_difference(given: Any, read: Any, path: str, only_set: bool) -> str | None:
    """``_difference`` of two models or dataclasses of the same fields."""
    others = dict(_fields(read))
    for name, part in _fields(given):
        if only_set and isinstance(given, BaseModel) and name not in given.model_fields_set:
            continue
        place = _join(path, name)
        if name not in others:
            return f"{place}: is not read back"
        if fault := _difference(part, others[name], place, only_set):
            return fault + _hint(type(given), name) if fault.startswith(f"{place}: is read as") else fault
    return None


def _hint(cls: Any, name: str) -> str:
    """What to do about a field that is read back otherwise than it was given."""
    field = getattr(cls, "__pydantic_fields__", {}).get(name)
    if getattr(field, "exclude", None):
        return ": exclude=True leaves it out of JSON; drop exclude, or the value"
    alias = getattr(field, "validation_alias", None)
    choices = alias.choices if isinstance(alias, AliasChoices) else [alias]
    if any(isinstance(choice, AliasPath) for choice in choices):
        return ": AliasPath is not part of a JSON schema; give the field a plain alias"
    return ": its validator does not undo what its type or serializer writes; make the two agree"


def _is_equal(given: Any, read: Any) -> bool:
    """Whether two values without fields or items are equal; NaN is, and points in time of different zones are."""
    try:
        if bool(given == read) or (given != given and read != read):
            return True
        if type(given) is type(read) and not _has_equality(type(given)):
            return bool(getattr(given, "__dict__", None) == getattr(read, "__dict__", None))
    except Exception:  # an own __eq__, or that of an array
        return False
    # Python holds a time in a changed hour unequal to that of every other zone.
    return isinstance(given, datetime.datetime) and given.isoformat() == getattr(read, "isoformat", str)()


def _has_equality(cls: type) -> bool:
    """Whether a class defines ``==``; objects of one that does not equal themselves alone."""
    return any("__eq__" in vars(base) for base in cls.__mro__[:-1])
