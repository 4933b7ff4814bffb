"""Whatever is sent as an upload: a reply of OpenAI's shape below 500, and nothing is left of what was refused."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import httpx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.service.conftest import Running
from tests.service.serving import stored, validated

BOUNDARY = "b0undary"
NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters='"\r\n'), max_size=20)


def _form(content: bytes, filename: str = "a.jsonl", purpose: str = "fine-tune", charset: str = "") -> bytes:
    disposition = f'Content-Disposition: form-data; name="file"; filename="{filename}"'
    return (
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n{purpose}\r\n'
        f"--{BOUNDARY}\r\n{disposition}\r\nContent-Type: application/octet-stream{charset}\r\n\r\n"
    ).encode() + content + f"\r\n--{BOUNDARY}--\r\n".encode()  # fmt: skip


def _post(service: Running, key: str, body: Any, kind: str, path: str = "/v1/files") -> httpx.Response:
    headers = {"content-type": kind, "authorization": f"Bearer {key}"}
    hooks = {"response": [validated]}
    with httpx.Client(event_hooks=hooks, timeout=60) as client:  # type: ignore[arg-type]
        return client.post(f"{service.base}{path}", content=body, headers=headers)


def _accepts_or_leaves_nothing(service: Running, body: Any, kind: str) -> httpx.Response:
    key = service.add_key()
    before = stored(service.settings.folder)
    reply = _post(service, key, body, kind)
    assert reply.status_code < 500, reply.text
    if reply.status_code == 200:
        url = f"{service.base}/v1/files/{reply.json()['id']}"
        httpx.delete(url, headers={"authorization": f"Bearer {key}"}).raise_for_status()
    else:
        assert reply.json()["error"]["message"]
    assert stored(service.settings.folder) == before
    return reply


@given(st.data())
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_body_is_accepted_whole_or_refused_and_leaves_nothing(
    service: Running, data: st.DataObject
) -> None:
    whole = _form(
        data.draw(st.binary(max_size=200)), data.draw(NAMES), data.draw(NAMES | st.just("fine-tune"))
    )
    cut = whole[: data.draw(st.integers(0, len(whole)))]
    body = data.draw(st.sampled_from([whole, cut, cut + b"\x00\xff" * 9]) | st.binary(max_size=300))
    charset = data.draw(st.sampled_from(["", "; charset=utf-7", "; charset=undefined", "; charset=idna"]))
    kind = data.draw(
        st.sampled_from(
            [
                f"multipart/form-data; boundary={BOUNDARY}{charset}",
                "multipart/form-data",
                "multipart/form-data; boundary=",
                "application/json",
                "application/x-www-form-urlencoded",
            ]
        )
    )
    _accepts_or_leaves_nothing(service, body, kind)


def test_a_form_that_was_cut_short_is_refused_wherever_it_was_cut(service: Running) -> None:
    whole = _form(b'{"a": 1}\n' * 3)
    end = whole.index(f"\r\n--{BOUNDARY}--".encode())
    for length in (0, 10, 60, 130, end - 5, end, end + 4):
        reply = _accepts_or_leaves_nothing(
            service, whole[:length], f"multipart/form-data; boundary={BOUNDARY}"
        )
        assert reply.status_code == 400


def test_a_body_beyond_the_limit_is_refused_whether_it_says_its_length_or_not(service: Running) -> None:
    huge = _form(b"{}" * (1 << 20))
    kind = f"multipart/form-data; boundary={BOUNDARY}"

    def unsized() -> Any:
        yield from (huge[start : start + 65536] for start in range(0, len(huge), 65536))

    for body in (huge, unsized()):
        before = stored(service.settings.folder)
        with suppress(httpx.TransportError):  # the server may have closed before all was sent
            assert _accepts_or_leaves_nothing(service, body, kind).status_code == 413
        assert stored(service.settings.folder) == before


def test_two_files_in_one_form_are_refused(service: Running) -> None:
    end = f"--{BOUNDARY}--\r\n".encode()
    twice = _form(b"{}").removesuffix(end) + _form(b"{}")
    reply = _accepts_or_leaves_nothing(service, twice, f"multipart/form-data; boundary={BOUNDARY}")
    assert reply.status_code == 400
