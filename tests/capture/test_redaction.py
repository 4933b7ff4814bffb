"""Secrets never reach the disk, at any depth; answers stay valid; a failing redactor withholds the record."""

from __future__ import annotations

import json
import random
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_index.core.llms import ChatMessage
from pydantic import BaseModel, Field

from llama_index_finetune_structured.capture import capture, read_examples
from llama_index_finetune_structured.capture.redaction import _IBAN_COUNTRIES, redact_row, redact_secrets
from tests.capture.fakes import EchoLLM, OpenAIServer, tool_message

SECRETS = {
    "openai": "sk-proj-Ab12Cd34Ef56Gh78Ij90Kl12Mn34",
    "anthropic": "sk-ant-api03-Zx9_Yw8-Vu7Ts6Rq5Po4Nm3",
    "github": "ghp_A1b2C3d4E5f6G7h8I9j0K1l2M3n4O5p6Q7r8",
    "aws": "AKIAIOSFODNN7EXAMPLE",
    "google": "AIzaSyA1234567890abcdefghijklmnopqrstuv",
    "slack": "xoxb-123456789012-abcdefghijkl",
    "hugging face": "hf_abcdefghijklmnopqrstuvwxyzABCDEF",
    "stripe": "sk_live_4eC39HqLyjWDarjtT1zdp7dc",
    "jwt": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9P",
    "bearer": "Bearer abcdef0123456789abcdef0123456789",
    "e-mail": "ada.lovelace+tag@engines.example.co.uk",
    "phone": "+44 20 7946 0958",
    "us phone": "(555) 867-5309",
    "card": "4111 1111 1111 1111",
    "amex": "3782 822463 10005",
    "plain card": "5500005555555559",
    "iban": "DE89 3704 0044 0532 0130 00",
    "iban with letters": "GB29NWBK60161331926819",
    "iban in lower case": "nl91abna0417164300",
    "private key": "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA75\n-----END RSA PRIVATE KEY-----",
    "url": "postgres://ada:countess1815@db.example.com/engines",
}
FORBIDDEN = {name: text.split("\n")[1] if "\n" in text else text for name, text in SECRETS.items()}
FORBIDDEN |= {"bearer": "abcdef0123456789abcdef0123456789", "url": "countess1815"}


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize(
    "around", ["{}", "before {} after", 'x="{}"', "line\n{}\nline", "({})", "secret:{},"]
)
def test_each_kind_of_secret_goes(name: str, around: str) -> None:
    assert FORBIDDEN[name] not in redact_secrets(around.replace("{}", SECRETS[name]))


@pytest.mark.parametrize(
    "text",
    [
        "password: hunter2hunter2",
        "api_key=abcdefgh12345678",
        '"client_secret": "s3cr3tv4lue"',
        "AUTH_TOKEN='abc123def456'",
    ],
)
def test_values_called_secret_go_and_their_names_stay(text: str) -> None:
    redacted = redact_secrets(text)
    assert "[SECRET]" in redacted
    assert redacted[:6] == text[:6]


@pytest.mark.parametrize(
    "text",
    [
        "123e4567-e89b-12d3-a456-426614174000",
        "Smith et al., 2019-2021, pages 1234-1250, doi:10.1000/182",
        " ".join(str(number % 10) for number in range(400)),
        "1234567890123456",  # no card: the check digit is wrong
        "1700000000007 9780306406157 1234567890123452",  # Luhn's check passes, but no issuer has such numbers
        "DE88 3704 0044 0532 0130 00",  # no account: the check digits are wrong
        "DE89 3704 0044 0532 0130 0",  # one digit short
        "XX82 3704 0044 0532 0130 00 ABCD1234567890123456789",
        "networkx.algorithms.shortest_paths(G, source=None) -> 3.14159265358979",
        "risk-management of task-oriented disk-based systems",
        "the token is the key to the password of the secret",
        "@decorator def f(): ...",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redact_secrets(text) == text


@given(st.text())
def test_redaction_never_raises_and_is_done_after_one_pass(text: str) -> None:
    once = redact_secrets(text)
    assert redact_secrets(once) == once


def nested(value: Any, depth: int, rng: random.Random) -> Any:
    """``value`` under ``depth`` levels of lists, objects and JSON inside of strings."""
    for _ in range(depth):
        kind = rng.random()
        if kind < 0.45:
            value = {"inner": value, "n": 1}
        elif kind < 0.9:
            value = ["x", value]
        elif len(json.dumps(value)) < 5_000:  # each level of quoting doubles the backslashes
            value = json.dumps(value)
    return value


@pytest.mark.parametrize("escaped", [False, True])
def test_a_thousand_secrets_at_depth_one_to_fifty_leave_none_on_disk(escaped: bool, path: Path) -> None:
    rng = random.Random(1)
    planted = [rng.choice(list(SECRETS)) for _ in range(1_000)]
    with capture(path, redact=True) as captured:
        for number, name in enumerate(planted):
            reply = json.dumps(nested(SECRETS[name], 1 + number % 50, rng), ensure_ascii=escaped)
            EchoLLM(reply=reply).chat([ChatMessage(role="user", content=f"{SECRETS[name]} {reply}")])
    assert captured.summary()["captured"] == 1_000
    assert found_on_disk(path) == []


def _same(answer: dict[str, Any], _request: object) -> dict[str, Any]:
    return answer


def test_secrets_in_tool_arguments_and_tools_leave_none_on_disk(path: Path, server: OpenAIServer) -> None:
    rng = random.Random(2)
    llm = server.llm("gpt-4")
    with capture(path, redact=True) as captured:
        for number in range(100):
            secret = SECRETS[rng.choice(list(SECRETS))]
            arguments = json.dumps({"deep": nested(secret, 1 + number % 50, rng)})
            answer = tool_message("store", arguments)
            server.reply = partial(_same, answer)
            function = {"name": "store", "description": f"e.g. {secret}", "parameters": {"type": "object"}}
            llm.chat([ChatMessage(content=secret)], tools=[{"type": "function", "function": function}])
    assert captured.summary()["captured"] == 100
    assert found_on_disk(path) == []
    for example in read_examples(path):
        assert isinstance(example.answer_object(), dict)


def test_rejects_are_redacted_as_well(path: Path) -> None:
    with capture(path, redact=True) as captured:
        EchoLLM(reply="").chat([ChatMessage(role="user", content=" ".join(SECRETS.values()))])
    assert captured.summary()["rejected"] == {"empty_answer": 1}
    assert found_on_disk(captured.rejects_path) == []


def found_on_disk(path: Path) -> list[str]:
    text = path.read_text()
    text += text.replace("\\", "")
    return [name for name, secret in FORBIDDEN.items() if secret in text]


def test_a_number_that_is_a_card_keeps_its_type_and_loses_its_value() -> None:
    assert redact_row({"card": 4111111111111111, "year": 1971, "ok": True}, redact_secrets) == {
        "card": 0,
        "year": 1971,
        "ok": True,
    }


def test_json_without_secrets_keeps_its_spelling(path: Path) -> None:
    reply = '{ "title":"Echoes",\n "year": 1971 }'
    with capture(path, redact=True):
        EchoLLM(reply=reply).chat([ChatMessage(role="user", content="x")])
    (example,) = read_examples(path)
    assert example.answer_text() == reply


def test_a_callable_takes_the_place_of_the_rules(path: Path) -> None:
    with capture(path, redact=lambda text: text.replace("Echoes", "XXX")):
        EchoLLM(reply="Echoes, write to a@example.com").chat([ChatMessage(role="user", content="Echoes?")])
    (example,) = read_examples(path)
    assert example.answer_text() == "XXX, write to a@example.com"
    assert example.messages[0].content == "XXX?"


def _fails(_: str) -> str:
    raise RuntimeError("no")


@pytest.mark.parametrize("redactor", [_fails, lambda _: None, lambda text: text.encode()])
def test_a_failing_redactor_withholds_the_record_and_counts_it(redactor: Any, path: Path) -> None:
    with capture(path, redact=redactor) as captured:
        assert EchoLLM(reply="kept by the host").complete("x").text == "kept by the host"
        EchoLLM(reply="").complete("rejected")
    assert captured.summary() == {
        "captured": 0,
        "rejected": {},
        "dropped_by_redaction": 2,
        "internal_errors": 0,
        "outside": 0,
    }
    assert path.read_text() == ""
    assert not captured.rejects_path.exists()


def test_redaction_is_off_unless_asked_for(path: Path) -> None:
    with capture(path):
        EchoLLM(reply="write to a@example.com").complete("x")
    (example,) = read_examples(path)
    assert example.answer_text() == "write to a@example.com"


def test_an_answer_that_redaction_would_spoil_is_withheld(path: Path) -> None:
    class Contact(BaseModel):
        email: str = Field(pattern="@")

    reply = '{"email": "ada@example.com"}'
    with capture(path, output_cls=Contact, redact=True) as captured:
        EchoLLM(reply=reply).chat([ChatMessage(role="user", content="x")])
    assert captured.summary()["captured"] == 0
    assert captured.summary()["dropped_by_redaction"] == 1


def test_a_secret_is_known_by_the_name_it_stands_under(path: Path) -> None:
    answer = {"username": "ada", "password": "hunter2hunter2", "of": [{"access_token": "9f8a7b6c5d4e"}]}
    with capture(path, redact=True):
        EchoLLM(reply=json.dumps(answer)).chat([ChatMessage(role="user", content="Who?")])
    (example,) = read_examples(path)
    assert json.loads(example.answer_text()) == {
        "username": "ada", "password": "[SECRET]", "of": [{"access_token": "[SECRET]"}]
    }  # fmt: skip


def _iban(country: str, length: int, rng: random.Random) -> str:
    """An account number of random characters with the right check digits."""
    account = "".join(rng.choice("0123456789" * 4 + "ABCXYZ") for _ in range(length - 4))
    number = "".join(str(int(char, 36)) for char in f"{account}{country}00")
    return f"{country}{98 - int(number) % 97:02}{account}"


@pytest.mark.parametrize(("length", "countries"), _IBAN_COUNTRIES.items())
def test_an_account_number_of_every_country_goes_however_it_is_grouped(length: int, countries: str) -> None:
    rng = random.Random(length)
    for country in countries.split():
        iban = _iban(country, length, rng)
        while re.search(r"\d{9}", iban) is None:  # a text without a long number is not searched
            iban = _iban(country, length, rng)
        grouped = " ".join(iban[start : start + 4] for start in range(0, length, 4))
        for text in (iban, grouped, grouped.lower(), grouped.replace(" ", "-")):
            assert redact_secrets(f"to {text} FROM ME") == "to [IBAN] FROM ME"
        assert redact_secrets(f"{iban} {iban}") == "[IBAN] [IBAN]"
        assert redact_secrets(f"{iban}9") != "[IBAN]9"


def test_numbers_of_an_answer_are_never_changed(path: Path, server: OpenAIServer) -> None:
    numbers = {
        "order": 4111111111111111,
        "call": 15558675309,
        "share": 4111111111111111.0,
        "seen": [5500005555555559],
    }
    text = json.dumps({**numbers, "card": "4111111111111111"})
    kept = {**numbers, "card": "[CARD]"}
    server.reply = lambda _: tool_message("Song", text)
    tool = {"type": "function", "function": {"name": "Song", "parameters": {"type": "object"}}}
    with capture(path, redact=True) as captured:
        EchoLLM(reply=text).chat([ChatMessage(content=text)])
        EchoLLM(reply=f"Here it is: {text}").complete("x")
        server.llm("gpt-4").chat([ChatMessage(content="y")], tools=[tool])
        EchoLLM(reply=json.dumps(numbers)).complete("numbers alone")
        EchoLLM(reply="\n" + json.dumps(numbers)).complete("line first")
        EchoLLM(reply="").complete("z")
    by_prompt = {str(example.messages[0].content)[:1]: example for example in read_examples(path)}
    assert by_prompt["{"].answer_object() == kept
    assert by_prompt["y"].answer_object() == kept
    assert by_prompt["n"].answer_object() == by_prompt["l"].answer_object() == numbers
    assert json.loads(str(by_prompt["{"].messages[0].content))["order"] == 0  # a prompt is no label
    assert captured.summary()["dropped_by_redaction"] == 0


@pytest.mark.parametrize("gap", [" ", "\u00a0", "\u202f", "-", "\u2011"])
def test_numbers_with_the_gaps_of_pdfs_are_redacted(gap: str) -> None:
    card, iban = (
        gap.join(["4111", "1111", "1111", "1111"]),
        gap.join(["DE89", "3704", "0044", "0532", "0130", "00"]),
    )
    assert redact_secrets(f"pay {card} or {iban}.") == "pay [CARD] or [IBAN]."


def test_a_card_is_found_beside_its_security_code() -> None:
    assert redact_secrets("4111 1111 1111 1111 123") == "[CARD] 123"


def test_article_numbers_are_no_cards() -> None:
    numbers = [f"4{number:012d}" for number in range(0, 10**12, 10**9 + 7)]
    assert [number for number in numbers if redact_secrets(number) != number] == []
