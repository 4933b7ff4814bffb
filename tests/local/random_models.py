"""Random Pydantic models with random objects of them, each by a seed."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import ipaddress
import keyword
import random
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args

import pydantic
from pydantic import (
    UUID4,
    AnyUrl,
    AwareDatetime,
    Base64Bytes,
    BaseModel,
    ByteSize,
    ConfigDict,
    EmailStr,
    Field,
    FiniteFloat,
    GetCoreSchemaHandler,
    HttpUrl,
    NaiveDatetime,
    NonNegativeFloat,
    PositiveInt,
    RootModel,
    constr,
    create_model,
)
from pydantic_core import core_schema
from typing_extensions import TypedDict

Random = random.Random
# Names that are keywords of JSON schema or of Python, and names that need an alias.
NAMES = [
    *(
        "anyOf",
        "allOf",
        "oneOf",
        "items",
        "properties",
        "$ref",
        "$defs",
        "pattern",
        "format",
        "propertyNames",
    ),
    *(
        "additionalProperties",
        "enum",
        "const",
        "type",
        "title",
        "required",
        "maxLength",
        "not",
        "if",
        "default",
    ),
    *("definitions", "prefixItems", "discriminator", "x-learned-keys", "minItems", "class", "lambda"),
    *(
        "größe",
        "日本",
        "a b",
        "with/slash",
        "tilde~0",
        'quo"te',
        "new\nline",
        "{}",
        "count",
        "name",
        "Z",
    ),
]


@dataclass(frozen=True)
class Kind:
    """An annotation, and a function that draws a value of it."""

    annotation: Any
    value: Callable[[Random], Any]


class Colour(enum.Enum):
    RED = "red"
    QUOTED = 'a "b" \\ c'


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 300


class Mixed(enum.Enum):
    ONE = 1
    TWO = "two"
    NONE = None
    TRUE = True


class Row(TypedDict):
    name: str
    count: int


class Point(NamedTuple):
    x: float
    y: int = 0


@dataclasses.dataclass
class Plain:
    a: int
    b: str = "b"


@pydantic.dataclasses.dataclass
class Checked:
    a: Decimal
    b: list[int] = dataclasses.field(default_factory=list)


class Even:
    """A custom type: an even number that is text in JSON."""

    def __init__(self, half: int) -> None:
        self.half = half

    @classmethod
    def __get_pydantic_core_schema__(
        cls, _source: Any, _handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        text = core_schema.no_info_after_validator_function(
            lambda text: cls(int(text[:-1])), core_schema.str_schema(pattern="^[0-9]{1,3}e$")
        )
        return core_schema.json_or_python_schema(
            json_schema=text,
            python_schema=core_schema.union_schema([core_schema.is_instance_schema(cls), text]),
            serialization=core_schema.plain_serializer_function_ser_schema(lambda even: f"{even.half}e"),
        )


class Names(RootModel[list[str]]):
    """Not an object."""


class Tree(BaseModel):
    label: str
    children: list[Tree] = []


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    lives: int = Field(default=9, ge=1, le=9)


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"
    tricks: list[str] = []


class Fish(BaseModel):
    kind: Literal["fish", "shark"] = "fish"
    depth: float | None = None


def _text(draw: Random) -> str:
    letters = "abc XYZ09\"\\/\n\t\x00\x7fé日😀{}[]:,'-"
    return "".join(draw.choice(letters) for _ in range(draw.choice([0, 1, 3, 8, 30, 120])))


def _letters(least: int, most: int) -> Callable[[Random], str]:
    return lambda draw: "".join(draw.choice("abcxyz") for _ in range(draw.randint(least, most)))


def _float(draw: Random) -> float:
    return draw.choice(
        [0.0, -1.5, draw.uniform(-1e3, 1e3), draw.uniform(0, 1) * 10.0 ** draw.randint(-30, 30)]
    )


def _moment(zone: datetime.tzinfo | None) -> Callable[[Random], datetime.datetime]:
    return lambda draw: (
        datetime.datetime(2000, 1, 1, tzinfo=zone)
        + datetime.timedelta(
            days=draw.randint(-400_000, 400_000),
            seconds=draw.randint(0, 86_399),
            microseconds=draw.choice([0, 7, 120_000]),
        )
    )


def _decimal(low: str, high: str, places: int) -> Callable[[Random], Decimal]:
    def value(draw: Random) -> Decimal:
        step = Decimal(1).scaleb(-draw.randint(0, places))
        least, most = int(Decimal(low) / step), int(Decimal(high) / step)
        return min(max(draw.randint(least, most) * step, Decimal(low)), Decimal(high))

    return value


def _duration(draw: Random) -> datetime.timedelta:
    return datetime.timedelta(
        days=draw.choice([0, 0, -1, 3, 400, -9000]),
        seconds=draw.randint(0, 90_000),
        microseconds=draw.choice([0, 5]),
    )


def _choice(*values: Any) -> Callable[[Random], Any]:
    return lambda draw: draw.choice(values)


ZONE = datetime.timezone(datetime.timedelta(hours=-3, minutes=-30))
LEAVES: dict[str, Kind] = {
    "str": Kind(str, _text),
    "int": Kind(int, lambda draw: draw.randint(-(10 ** draw.randint(0, 30)), 10 ** draw.randint(0, 30))),
    "float": Kind(float, _float),
    "bool": Kind(bool, _choice(True, False)),
    "None": Kind(None, _choice(None)),
    "bytes": Kind(bytes, lambda draw: _text(draw).encode()),
    "path": Kind(Path, _choice(Path("/etc/hosts"), Path("a b/ü.txt"))),
    "decimal": Kind(
        Decimal, _choice(*map(Decimal, ["25", "-0.10", "1E+2", "1E-7", "0", "-12345.678", "0E-8"]))
    ),
    "decimal gt": Kind(Annotated[Decimal, Field(gt=0)], _decimal("0.001", "1000", 3)),
    "decimal range": Kind(Annotated[Decimal, Field(ge=-5, lt=Decimal("99.5"))], _decimal("-5", "99.49", 2)),
    "decimal le": Kind(Annotated[Decimal, Field(le=-3)], _decimal("-1000", "-3", 2)),
    "money": Kind(
        Annotated[Decimal, Field(ge=0, max_digits=8, decimal_places=2)], _decimal("0", "999999.99", 2)
    ),
    "digits": Kind(Annotated[Decimal, Field(max_digits=6)], _decimal("-99.9999", "99.9999", 4)),
    "cents": Kind(Annotated[Decimal, Field(multiple_of=0.01, gt=0)], _decimal("0.01", "999", 2)),
    "date": Kind(datetime.date, lambda draw: _moment(None)(draw).date()),
    "time": Kind(datetime.time, lambda draw: _moment(draw.choice([None, ZONE]))(draw).timetz()),
    "datetime": Kind(
        datetime.datetime, lambda draw: _moment(draw.choice([None, datetime.timezone.utc]))(draw)
    ),
    "aware": Kind(AwareDatetime, _moment(ZONE)),
    "naive": Kind(NaiveDatetime, _moment(None)),
    "timedelta": Kind(datetime.timedelta, _duration),
    "uuid": Kind(uuid.UUID, lambda draw: uuid.UUID(int=draw.getrandbits(128))),
    "uuid4": Kind(UUID4, lambda draw: uuid.UUID(int=draw.getrandbits(128), version=4)),
    "url": Kind(
        AnyUrl, _choice(AnyUrl("https://a.org/x?y=1#z"), AnyUrl("ftp://b.net"), AnyUrl("mailto:a@b.org"))
    ),
    "web": Kind(HttpUrl, _choice(HttpUrl("http://localhost:8000"), HttpUrl("https://münchen.de/ü?q=a%20b"))),
    "email": Kind(EmailStr, _choice("a@b.org", "first.last+tag@mail.example.co.uk")),
    "ipv4": Kind(ipaddress.IPv4Address, lambda draw: ipaddress.IPv4Address(draw.getrandbits(32))),
    "ipv6": Kind(ipaddress.IPv6Address, lambda draw: ipaddress.IPv6Address(draw.getrandbits(128))),
    "ipv4 network": Kind(
        ipaddress.IPv4Network,
        lambda draw: ipaddress.IPv4Network((draw.getrandbits(32), draw.randint(0, 32)), strict=False),
    ),
    "ipv4 interface": Kind(ipaddress.IPv4Interface, _choice(ipaddress.IPv4Interface("10.0.0.7/24"))),
    "ipv6 interface": Kind(ipaddress.IPv6Interface, _choice(ipaddress.IPv6Interface("2001:db8::7/64"))),
    "enum": Kind(Colour, _choice(*Colour)),
    "int enum": Kind(Level, _choice(*Level)),
    # None of an optional field is read as None, not as the enum's member
    "mixed enum": Kind(Mixed, _choice(Mixed.ONE, Mixed.TWO)),
    "literal": Kind(Literal[1, "two", None, True], _choice(1, "two", None, True)),
    "unicode literal": Kind(Literal["naïve", "日\n本", "\x7f"], _choice("naïve", "日\n本", "\x7f")),
    "base64 bytes": Kind(Base64Bytes, _choice(b"YWJj", b"")),
    "byte size": Kind(ByteSize, _choice(0, 3_000_000)),
    "custom": Kind(Even, lambda draw: Even(draw.randint(0, 999))),
    "positive": Kind(PositiveInt, lambda draw: draw.randint(1, 10 ** draw.randint(0, 18))),
    "finite": Kind(FiniteFloat, _float),
    "non negative": Kind(NonNegativeFloat, lambda draw: draw.uniform(0, 1) * 10.0 ** draw.randint(-15, 30)),
    "share": Kind(
        Annotated[float, Field(ge=0, le=1)], lambda draw: draw.uniform(0, 1) * 10 ** -draw.choice([0, 9])
    ),
    "even": Kind(Annotated[int, Field(multiple_of=2, ge=0, le=1000)], lambda draw: 2 * draw.randint(0, 500)),
    "strict int": Kind(Annotated[int, Field(strict=True, gt=-3)], lambda draw: draw.randint(-2, 50)),
    "constr": Kind(constr(min_length=3, max_length=5), _letters(3, 5)),
    "stripped": Kind(constr(strip_whitespace=True, to_lower=True), _letters(0, 9)),
    "code": Kind(constr(pattern=r"^[A-Z]{3}-\d{2}$"), lambda draw: f"ABC-{draw.randint(10, 99)}"),
    "loose pattern": Kind(constr(pattern=r"\d{2}", max_length=20), lambda draw: f"a{draw.randint(10, 99)}"),
    "bounded pattern": Kind(Annotated[str, Field(pattern=r"^[a-z]+$", max_length=6)], _letters(1, 6)),
    "unicode pattern": Kind(constr(pattern=r"^\p{Lu}\p{L}*$"), _choice("Ärzte", "B")),
    "typed dict": Kind(Row, lambda draw: {"name": _text(draw), "count": draw.randint(0, 9)}),
    "named tuple": Kind(Point, lambda draw: Point(1.5, draw.randint(0, 9))),
    "dataclass": Kind(Plain, lambda draw: Plain(draw.randint(0, 9))),
    "checked dataclass": Kind(Checked, lambda draw: Checked(Decimal(draw.randint(0, 9)), [1])),
    "root model": Kind(Names, lambda draw: Names([_text(draw)])),
    "recursive": Kind(
        Tree, lambda draw: Tree(label=_text(draw), children=[Tree(label="x")] * draw.randint(0, 2))
    ),
    "pet": Kind(
        Annotated[Cat | Dog | Fish, Field(discriminator="kind")], _choice(Cat(), Dog(tricks=["a"]), Fish())
    ),
}
KEYS: list[Kind] = [
    Kind(str, _text),
    Kind(int, lambda draw: draw.randint(-99, 99)),
    Kind(float, lambda draw: draw.choice([0.5, 1.0, -2.25])),
    Kind(bool, _choice(True, False)),
    Kind(Colour, _choice(*Colour)),
    Kind(uuid.UUID, lambda draw: uuid.UUID(int=draw.getrandbits(128))),
    Kind(datetime.date, lambda draw: _moment(None)(draw).date()),
    Kind(Literal["a", "b"], _choice("a", "b")),
    Kind(constr(pattern="^[a-z]{2}$"), _letters(2, 2)),
    Kind(Decimal, _decimal("0", "99", 1)),
]


def random_kind(draw: Random, depth: int) -> Kind:
    """A leaf or, at some depth, a collection, union or model."""
    if depth == 0 or draw.random() < 0.45:
        return LEAVES[draw.choice(list(LEAVES))]
    inner = random_kind(draw, depth - 1)
    held: Any = inner.annotation
    some = lambda d: [inner.value(d) for _ in range(d.randint(0, 3))]  # noqa: E731
    form = draw.choice(
        ["list", "conlist", "tuple", "pair", "deque", "dict", "optional", "union", "model", "model"]
    )
    if form == "list":
        return Kind(list[held], some)
    if form == "conlist":
        return Kind(
            Annotated[list[held], Field(min_length=1, max_length=4)],
            lambda d: [inner.value(d), *some(d)],
        )
    if form == "tuple":
        return Kind(tuple[held, ...], lambda d: tuple(some(d)))
    if form == "pair":
        return Kind(tuple[held, int], lambda d: (inner.value(d), d.randint(0, 9)))
    if form == "deque":
        leaf = LEAVES[draw.choice(list(LEAVES))]
        held = leaf.annotation
        return Kind(deque[held], lambda d: deque(leaf.value(d) for _ in range(3)))
    if form == "dict":
        key = draw.choice(KEYS)
        key_held: Any = key.annotation
        return Kind(dict[key_held, held], lambda d: {key.value(d): item for item in some(d)})
    if form == "optional":
        return Kind(held | None if held else None, lambda d: d.choice([None, inner.value(d)]))
    if form == "union":
        other = random_kind(draw, depth - 1)
        if other.annotation == held or None in (held, other.annotation):
            return inner
        union: Any = held | other.annotation
        if draw.random() < 0.5 and len(get_args(union)) > 1:
            union = Annotated[union, Field(union_mode="left_to_right")]
        return Kind(union, lambda d: d.choice([inner, other]).value(d))
    return random_model(draw, depth - 1)


def random_model(draw: Random, depth: int) -> Kind:
    """A class of one to five fields, with odd names, aliases and defaults."""
    names = draw.sample(NAMES, draw.randint(1, 5))
    kinds = [random_kind(draw, depth) for _ in names]
    fields: dict[str, Any] = {}
    optional: list[str] = []
    for number, (name, kind) in enumerate(zip(names, kinds, strict=True)):
        if draw.random() < 0.3:
            optional.append(name)
        options: dict[str, Any] = {"validation_alias": name} if draw.random() < 0.5 else {"alias": name}
        if draw.random() < 0.2 and not keyword.iskeyword(name) and name.isidentifier() and name.isascii():
            options = {"alias": name, "serialization_alias": f"{name}_out"}
        annotation = kind.annotation
        fields[f"field_{number}"] = (
            (annotation | None if annotation else None, Field(None, **options)) if name in optional
            else (annotation, Field(**options))
        )  # fmt: skip
    config = ConfigDict(extra=draw.choice(["ignore", "forbid", "allow"]), ser_json_bytes="utf8")
    model = create_model(f"Random{draw.randint(0, 10**9)}", __config__=config, **fields)

    def value(d: Random) -> Any:
        given = {
            name: kind.value(d)
            for name, kind in zip(names, kinds, strict=True)
            if name not in optional or d.random() < 0.6
        }
        return model.model_validate(given)

    return Kind(model, value)
