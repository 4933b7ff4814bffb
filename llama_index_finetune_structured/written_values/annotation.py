"""``AsWritten``: annotates fields of classes whose values stand in answers as the document writes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal
from typing import Annotated, Any

from pydantic import AwareDatetime, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler, NaiveDatetime
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from ..errors import ConfigurationError
from .kinds import KEYWORD, WrittenKind
from .readings import TOKEN, DocumentTexts, locale_of, western_digits

__all__ = ["AsWritten", "Money"]

_KINDS: dict[Any, str] = {
    Decimal: "decimal",
    int: "integer",
    float: "number",
    date: "date",
    time: "time",
    **dict.fromkeys((datetime, AwareDatetime, NaiveDatetime), "datetime"),
}
_NO_TEXTS = DocumentTexts()


@dataclass(frozen=True)
class Money:
    """An amount of money.

    Attributes:
        amount: The amount.
        currency: The currency, by its ISO 4217 code where the field is annotated with ``AsWritten``; None: unknown.
    """

    __pydantic_config__ = ConfigDict(json_schema_extra={"description": "An amount of money."})

    amount: Decimal
    currency: str | None = None


@dataclass(frozen=True)
class _Written:
    """Reads texts of one kind; objects and numbers of JSON are taken as they are."""

    kind: WrittenKind

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(
            self._value,
            handler(source),
            serialization=core_schema.plain_serializer_function_ser_schema(
                self._text, return_schema=core_schema.str_schema(), when_used="json-unless-none"
            ),
        )

    def __get_pydantic_json_schema__(self, _: CoreSchema, __: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"type": "string", "description": "As the text has it.", KEYWORD: self.kind.keyword}

    def _value(self, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        reading = self.kind.read(value, _NO_TEXTS)
        if reading.others:
            choices = " or ".join(map(self.kind.text, (reading.value, *reading.others)))
            raise ValueError(f"{value!r} may be {choices}: name one locale that decides it")
        found = reading.value
        return {"integer": int, "number": float}.get(self.kind.name, lambda same: same)(found)

    def _text(self, value: Any) -> str:
        return self.kind.text(value)


class AsWritten:
    """Annotation of a field whose value answers write as the document does: ``Annotated[Decimal, AsWritten("de")]``.

    For fields of ``Decimal``, ``int``, ``float``, ``date``, ``datetime``, ``time`` and ``Money``. The model copies the
    text, such as ``1.834,40``, and the class reads the value, ``Decimal("1834.40")``. Where a text has two meanings
    (``1.834``, ``03/04/2026``, ``3:30``) the locales decide. With none, or where two disagree, the other numbers, dates
    or times of the document do; where these do not tell, the answer has a problem (``Trust.problems``), and the class
    alone refuses the text. JSON numbers, and dates and times of ISO 8601, are read the same in all locales.

    Args:
        *locales: Locales of the documents, such as ``"de"``, ``"en_GB"`` or ``"pt-BR"``.

    Raises:
        ConfigurationError: A locale is not known; or the field has another type.
        MissingDependencyError: The extra ``values`` is not installed.
    """

    def __init__(self, *locales: str) -> None:
        for name in locales:
            locale_of(name)
        self.locales = locales

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AsWritten) and other.locales == self.locales

    def __hash__(self) -> int:
        return hash(self.locales)

    def __repr__(self) -> str:
        return f"AsWritten({', '.join(map(repr, self.locales))})"

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """The schema of the annotated type, for Pydantic.

        Args:
            source: The type.
            handler: Pydantic's handler.
        """
        if source is Money:
            return _money_schema(self.locales, handler)
        found = _KINDS.get(_bare(source))
        if found is None:
            raise ConfigurationError(
                f"AsWritten: found a field of {source!r}, expected Decimal, int, float, date, datetime, time or "
                "Money; of an optional or a list, annotate the type inside: list[Annotated[Decimal, AsWritten(...)]]"
            )
        kind = WrittenKind(found, self.locales)
        return handler.generate_schema(Annotated[source, _Written(kind)])


def _bare(source: Any) -> Any:
    return getattr(source, "__origin__", source)


def _money_schema(locales: Sequence[str], handler: GetCoreSchemaHandler) -> CoreSchema:
    amount = _Written(WrittenKind("decimal", tuple(locales)))
    currency = _Written(WrittenKind("currency", tuple(locales)))
    field, schema_of = core_schema.typed_dict_field, handler.generate_schema
    parts = core_schema.typed_dict_schema(
        {
            "amount": field(schema_of(Annotated[Decimal, amount])),
            "currency": field(schema_of(Annotated[str, currency] | None)),
        }
    )

    def as_parts(value: Any) -> Any:
        if isinstance(value, Money):
            return {"amount": value.amount, "currency": value.currency}
        return _money_parts(value) if isinstance(value, str) else value

    def dumped(value: Money, info: core_schema.SerializationInfo) -> dict[str, Any]:
        found = amount.kind.text(value.amount) if info.mode == "json" else value.amount
        return {"amount": found, "currency": value.currency}

    return core_schema.no_info_before_validator_function(
        as_parts,
        core_schema.no_info_after_validator_function(lambda found: Money(**found), parts),
        serialization=core_schema.plain_serializer_function_ser_schema(
            dumped, info_arg=True, when_used="unless-none"
        ),
    )


def _money_parts(text: str) -> dict[str, Any]:
    """The amount and the currency in one text, as labels have it."""
    plain = western_digits(text)
    found = TOKEN.search(plain)
    if found is None:
        raise ValueError(f"{text!r} has no amount")
    currency = (text[: found.start()] + text[found.end() :]).strip(" \u00a0\u202f()-−–")
    start = found.start() - (plain[found.start() - 1 : found.start()] in ("-", "−"))
    return {"amount": text[start : found.end()], "currency": currency or None}
