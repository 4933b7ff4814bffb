"""Ten thousand requests of one server: its memory and its open files do not grow."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.service.serving import ServerProcess, rows

_AT_A_TIME = 16
_GROWTH = 24 << 20  # what allocators keep; a leak of 4 kB a request would be 32 MiB


async def _ask(client: httpx.AsyncClient, chance: random.Random) -> None:
    """One request of a client: an answer, whole or in pieces, some left before their end; files; listings."""
    kind = chance.choice(["chat", "stream", "leaves", "leaves early", "file", "list", "refused"])
    # Of few prompts, or what is cached of each would grow up to its limit.
    message = {"role": "user", "content": f"Film {chance.randrange(200)}"}
    body: dict[str, Any] = {"model": "tiny", "messages": [message], "max_tokens": chance.randint(1, 4)}
    if kind == "chat":
        (await client.post("/v1/chat/completions", json=body)).raise_for_status()
    elif kind in ("stream", "leaves"):
        asked = {**body, "stream": True, "max_tokens": 200 if kind == "leaves" else 4}
        async with client.stream("POST", "/v1/chat/completions", json=asked) as reply:
            async for _ in reply.aiter_lines():
                if kind == "leaves":
                    break
    elif kind == "leaves early":
        with suppress(httpx.TimeoutException):
            await client.post("/v1/chat/completions", json={**body, "max_tokens": 200}, timeout=0.05)
    elif kind == "file":
        form = {"purpose": "fine-tune"}
        reply = await client.post("/v1/files", data=form, files={"file": ("a.jsonl", rows(3))})
        (await client.delete(f"/v1/files/{reply.json()['id']}")).raise_for_status()
    elif kind == "list":
        (await client.get("/v1/models")).raise_for_status()
    else:
        assert (await client.post("/v1/chat/completions", json={**body, "model": "other"})).status_code == 404


async def _many(base: str, count: int, seed: int) -> None:
    chance, places = random.Random(seed), asyncio.Semaphore(_AT_A_TIME)
    limits = httpx.Limits(max_connections=_AT_A_TIME)
    async with httpx.AsyncClient(base_url=base, timeout=120, limits=limits) as client:

        async def one() -> None:
            async with places:
                await _ask(client, chance)

        await asyncio.gather(*(one() for _ in range(count)))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ten_thousand_requests_leave_memory_and_files_as_they_were(tiny_llama: Path, tmp_path: Path) -> None:
    server = ServerProcess(tmp_path / "service", tiny_llama)
    found = []
    begun = time.monotonic()
    for turn in range(10):
        asyncio.run(_many(server.base, 1000, turn))
        time.sleep(1)  # those that were left end
        found.append((server.memory, server.descriptors))
        memory, descriptors = server.memory >> 20, server.descriptors
        print(f"{turn + 1} 000 requests, {time.monotonic() - begun:.0f} s: {memory} MiB, {descriptors} files")
    assert server.stop() == 130
    assert found[-1][0] - found[1][0] < _GROWTH, found
    assert found[-1][1] <= found[1][1] + _AT_A_TIME, found
