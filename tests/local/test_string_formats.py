"""The patterns of string formats match what people write and what pydantic serialises."""

from __future__ import annotations

import re

import pytest
from pydantic import EmailStr, FileUrl, HttpUrl, PostgresDsn, TypeAdapter

from llama_index_finetune_structured.local.schema.string_formats import PATTERNS, url_pattern

WEB = [
    "http://localhost:8000",
    "https://doi.org/10.21105/joss.01234",
    "https://en.wikipedia.org/wiki/Graph_(discrete_mathematics)?oldid=1#History",
    "https://xn--mnchen-3ya.de/übersicht",
    "https://user:pass@my_host.example.com:8443/a%20b",
    "http://192.168.0.1/",
    "http://[::1]/",
    "http://[2001:db8::1]:65/",
]
FILES = ["file:///etc/hosts", "file://server/share/a.txt"]
DATABASES = ["postgres://user:pass@localhost:5432/app", "postgresql+asyncpg://u@one:1,two:2/app?a=b"]
ADDRESSES = ["a@b.org", "first.last+tag@mail.example.co.uk", "o'brien_77@x-y.io", "j.r.r.tolkien@oxford.edu"]


@pytest.mark.parametrize(
    ("kind", "schemes", "text"),
    [(HttpUrl, ["http", "https"], text) for text in WEB]
    + [(FileUrl, ["file"], text) for text in FILES]
    + [(PostgresDsn, ["postgres", "postgresql+asyncpg"], text) for text in DATABASES],
)
def test_a_url_fits_the_pattern_as_written_and_as_pydantic_writes_it(
    kind: type, schemes: list[str], text: str
) -> None:
    pattern = url_pattern(schemes, hosts=kind is PostgresDsn)
    assert re.search(pattern, text)
    assert re.search(pattern, str(TypeAdapter(kind).validate_python(text)))


@pytest.mark.parametrize("text", ["ftp://a.org", "http://", "http://a b", "http://1.2.3", "http://a:99999/"])
def test_what_pydantic_refuses_or_changes_does_not_fit(text: str) -> None:
    assert not re.search(url_pattern(["http", "https"]), text)


@pytest.mark.parametrize("text", ADDRESSES)
def test_an_address_fits_the_pattern(text: str) -> None:
    assert TypeAdapter(EmailStr).validate_python(text) == text
    assert re.search(PATTERNS["email"], text)


@pytest.mark.parametrize("text", ["a@b", "a..b@c.org", "a@-b.org", "@c.org", "a@b.c"])
def test_no_address_does_not_fit(text: str) -> None:
    assert not re.search(PATTERNS["email"], text)
