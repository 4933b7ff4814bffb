"""Kill a capturing process repeatedly at random moments and count the lost records; run as a script.

    python -m tests.reliability.kills ROUNDS ACKS_A_ROUND FOLDER

Prints JSON: kills, acknowledged, lost, doubled, torn (tails found cut). Half of the rounds capture LLM calls,
half write to the store alone, some of these records so large that a kill can cut one. All rounds continue
the same two files.
"""

from __future__ import annotations

import json
import os
import random
import signal
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from llama_index_finetune_structured.capture import capture, read_examples
from llama_index_finetune_structured.jsonl_store import JsonlStore, read_shards
from tests.capture.fakes import EchoLLM

ACK = struct.Struct("<q")


def capture_for_ever(path: Path, round_: int, acks: int) -> None:
    llm = EchoLLM()
    with capture(path):
        number = 0
        while True:
            llm.complete(f"{round_}:{number}")
            os.write(acks, ACK.pack(number))
            number += 1


def store_for_ever(path: Path, round_: int, acks: int) -> None:
    store = JsonlStore(path)
    large = "x" * (3_000_000 if round_ % 8 == 1 else 200)
    number = 0
    while True:
        record = {"round": round_, "number": number, "text": large[: None if number % 50 else 9]}
        store.append(json.dumps(record).encode())
        os.write(acks, ACK.pack(number))
        number += 1


def killed_round(path: Path, round_: int, enough: int) -> int:
    """Fork a process, let it acknowledge ``enough`` records and kill it a random moment later."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        try:
            (capture_for_ever if round_ % 2 == 0 else store_for_ever)(path, round_, write_end)
        finally:
            os._exit(1)
    os.close(write_end)
    acknowledged = 0
    while acknowledged < enough:
        acknowledged += len(os.read(read_end, ACK.size * 512)) // ACK.size
    time.sleep(random.uniform(0, 0.003))
    os.kill(child, signal.SIGKILL)
    while data := os.read(read_end, 1 << 20):
        acknowledged += len(data) // ACK.size
    os.close(read_end)
    os.waitpid(child, 0)
    return acknowledged


def is_torn(path: Path) -> bool:
    with open(path, "rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read() != b"\n"


def kept(calls: Path, store: Path) -> Iterator[tuple[int, int]]:
    for example in read_examples(calls):
        round_, number = str(example.messages[0].content).split(":")
        yield int(round_), int(number)
    for line in read_shards(store):
        row = json.loads(line.raw)
        yield row["round"], row["number"]


def main(rounds: int, enough: int, folder: Path) -> None:
    calls, store = folder / "calls.jsonl", folder / "store.jsonl"
    acknowledged: dict[int, int] = {}
    torn = 0
    for round_ in range(rounds):
        path, large = (calls, False) if round_ % 2 == 0 else (store, round_ % 8 == 1)
        few = 40 if large else max(enough // 20, 40) if round_ % 2 == 0 else enough
        acknowledged[round_] = killed_round(path, round_, few)
        torn += is_torn(path)
    seen: dict[int, set[int]] = {round_: set() for round_ in range(rounds)}
    doubled = 0
    for round_, number in kept(calls, store):
        doubled += number in seen[round_]
        seen[round_].add(number)
    lost = sum(len(set(range(count)) - seen[round_]) for round_, count in acknowledged.items())
    report = {"kills": rounds, "acknowledged": sum(acknowledged.values()), "lost": lost, "doubled": doubled}
    print(json.dumps({**report, "torn": torn}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
