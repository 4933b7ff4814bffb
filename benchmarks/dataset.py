"""Data set benchmarks: answers from a slow teacher, preflight of a broken file, memory of retrieval rows.

    python benchmarks/dataset.py [answers] [preflight] [memory] [--quick] [--json FILE]   (default: all three parts)

``answers``: 200 questions to a loopback teacher of 200 ms at concurrency 16; ``answer_questions`` alternates
with a bare ``asyncio.gather`` over the same query engine; also the ideal time, and the sequential loop of
LlamaIndex's notebooks. ``preflight``: 1,000 malformed among 10,000 lines. ``memory``: 100,000 pairs over a BM25
retriever. ``--quick`` runs a tenth of the lines and pairs, a quarter of the questions.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import multiprocessing
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

QUESTIONS, LATENCY_S, CONCURRENCY, ROUNDS = 200, 0.2, 16, 6
PAIRS, CHUNKS = 100_000, 2_000
WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in ("a", "e", "i", "o", "u") for c in "bdglmnrst"]


def teacher(port: Any) -> None:
    """Answer every chat request after LATENCY_S, in an asyncio process of its own, so that it is no bottleneck."""
    body = json.dumps(
        {
            "id": "c", "object": "chat.completion", "created": 0, "model": "gpt-4o-mini",
            "choices": [
                {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "An answer."}}
            ],
            "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
        }
    ).encode()  # fmt: skip
    head = (
        f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    )

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            try:
                request = await reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError:  # the client closed the connection
                break
            length = int(request.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
            await asyncio.sleep(LATENCY_S)
            writer.write(head + body)
            await writer.drain()
        writer.close()

    async def run() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


def text(draw: random.Random, length: int) -> str:
    return " ".join(draw.choices(WORDS, k=length))


def bm25(chunks: int) -> Any:
    from llama_index.core.schema import TextNode
    from llama_index.retrievers.bm25 import BM25Retriever

    draw = random.Random(0)
    nodes = [TextNode(id_=f"n{i}", text=text(draw, 150)) for i in range(chunks)]
    return BM25Retriever.from_defaults(nodes=nodes, similarity_top_k=2)


async def gathered(engine: Any, questions: list[str]) -> float:
    slots = asyncio.Semaphore(CONCURRENCY)

    async def one(question: str) -> Any:
        async with slots:
            return await engine.aquery(question)

    started = time.perf_counter()
    await asyncio.gather(*map(one, questions))
    return time.perf_counter() - started


async def ours(engine: Any, questions: list[str], folder: Path) -> float:
    from llama_index_finetune_structured.dataset import CallPolicy, aanswer_questions

    started = time.perf_counter()
    report = await aanswer_questions(
        engine, questions, folder / "a.jsonl", calls=CallPolicy(concurrency=CONCURRENCY), show_progress=False
    )
    seconds = time.perf_counter() - started
    assert len(report.answers) == len(questions) == len(report.load()), report
    return seconds


def raft_pack(llm: Any, questions: list[str], count: int) -> float | None:
    """Seconds of the RAFT pack's sequential answering, extrapolated to ``count`` questions; None: not installed."""
    try:
        from llama_index.packs.raft_dataset import RAFTDatasetPack
    except ImportError:
        return None
    pack = RAFTDatasetPack("unused", llm=llm, embed_model="unused")
    started = time.perf_counter()
    for question in questions:
        pack.generate_label(question, "context")
    return (time.perf_counter() - started) * count / len(questions)


async def answers(quick: bool) -> dict[str, Any]:
    from llama_index.core.query_engine import RetrieverQueryEngine
    from llama_index.llms.openai import OpenAI

    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=teacher, args=(there,), daemon=True)
    process.start()
    llm = OpenAI(model="gpt-4o-mini", api_key="sk-test", api_base=f"http://127.0.0.1:{here.recv()}/v1")
    engine = RetrieverQueryEngine.from_args(bm25(100), llm=llm)
    draw = random.Random(1)
    count, rounds = (QUESTIONS // 4, 2) if quick else (QUESTIONS, ROUNDS)
    questions = [f"{text(draw, 8)} {n}" for n in range(count)]
    await gathered(engine, questions[:CONCURRENCY])
    times: dict[str, list[float]] = {"bare asyncio.gather": [], "answer_questions, under capture": []}
    for number in range(2 * rounds):
        own_turn = number % 4 in (1, 2)
        with tempfile.TemporaryDirectory() as folder:
            if own_turn:
                times["answer_questions, under capture"].append(await ours(engine, questions, Path(folder)))
            else:
                times["bare asyncio.gather"].append(await gathered(engine, questions))
    started = time.perf_counter()
    for question in questions[:20]:
        await engine.aquery(question)
    loop_s = (time.perf_counter() - started) * count / 20
    raft_s = raft_pack(llm, questions[:20], count)
    process.terminate()
    ideal_s = math.ceil(count / CONCURRENCY) * LATENCY_S
    bare, own = (statistics.median(seconds) for seconds in times.values())
    print(f"answers: {count} questions, teacher {LATENCY_S * 1000:.0f} ms, concurrency {CONCURRENCY}")
    print(f"  ideal                              {ideal_s:7.2f} s")
    for name, seconds in times.items():
        spread = " ".join(f"{s:.2f}" for s in seconds)
        print(f"  {name:<34} {statistics.median(seconds):7.2f} s   (of {spread})")
    print(f"  the notebooks' sequential loop {loop_s:11.2f} s   (from 20 questions)")
    print(f"  ours / bare: {own / bare:.3f}")
    print("  RAFT pack: not installed" if raft_s is None else f"  RAFT pack, sequential {raft_s:20.2f} s")
    figures = {"questions": count, "ideal_s": ideal_s, "ours_to_bare": own / bare, "loop_s": loop_s}
    return figures | {"seconds": times, "raft_pack_s": raft_s}


def preflight(quick: bool) -> dict[str, Any]:
    from llama_index_finetune_structured.dataset import FinetuneDataset, check

    count = 1_000 if quick else 10_000
    data = FinetuneDataset.from_pairs([(f"question {n}", {"answer": n}) for n in range(count)])
    broken = [b"\xff", b'{"messages": [', b"[1]", b'{"query": "q"}', b'{"messages": [{"role": "wizard"}, 1]}']
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.jsonl"
        wrong = set(random.Random(0).sample(range(1, count + 1), count // 10))
        lines = (e.to_json().encode() for e in data)
        path.write_bytes(
            b"\n".join(broken[n % 5] if n in wrong else line for n, line in enumerate(lines, start=1))
        )
        started = time.perf_counter()
        report = check(path, target="openai")
        seconds = time.perf_counter() - started
    found = {problem.line for problem in report.problems if not problem.is_warning}
    print(f"preflight: {count} lines in {seconds:.1f} s; {len(found)} bad lines reported, {report.good} good")
    print(f"  exactly the malformed ones: {found == wrong}")
    return {"lines": count, "seconds": seconds, "reported": len(found), "exact": found == wrong}


def memory(quick: bool) -> dict[str, Any]:
    """Measure in a process of its own, so that the peak is that of the rows alone."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_memory, args=(there, quick))
    process.start()
    figures: dict[str, Any] = here.recv()
    process.join()
    return figures


def _resident_mb(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"no {field} in /proc/self/status: this measurement needs Linux")


def _memory(result: Any, quick: bool) -> None:
    from llama_index_finetune_structured.dataset import RetrievalAugmentedDatasetBuilder

    count = PAIRS // 10 if quick else PAIRS

    def pairs() -> Iterator[tuple[str, str]]:
        draw = random.Random(2)
        return ((f"{text(draw, 8)} {n}", text(draw, 20)) for n in range(count))

    retriever = bm25(CHUNKS)
    retriever.retrieve("warm up")
    before = _resident_mb("VmRSS")
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        path = RetrievalAugmentedDatasetBuilder(retriever, distractors=1, share_without_support=0.2).write(
            pairs(), Path(folder) / "rows.jsonl", show_progress=sys.stderr.isatty()
        )
        seconds, size = time.perf_counter() - started, path.stat().st_size / 1024**2
        with path.open("rb") as file:
            rows = sum(1 for _ in file)
    peak = _resident_mb("VmHWM")
    print(
        f"memory: {count} pairs over BM25 of {CHUNKS} chunks -> {rows} rows, {size:.0f} MB, {seconds:.0f} s"
    )
    print(f"  resident with the index {before:.0f} MB, peak {peak:.0f} MB: {peak - before:.0f} MB more")
    result.send({"pairs": count, "rows": rows, "seconds": seconds, "index_mb": before, "peak_mb": peak})


def main() -> None:
    parts: dict[str, Callable[[bool], dict[str, Any]]] = {
        "answers": lambda quick: asyncio.run(answers(quick)),
        "preflight": preflight,
        "memory": memory,
    }
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(parts))
    parser.add_argument("--quick", action="store_true", help="fewer rows and rounds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(parts):
        parser.error(f"{', '.join(sorted(unknown))}: expected {', '.join(parts)}")
    about = {"python": platform.python_version(), "machine": platform.machine()}
    print(f"Python {about['python']}, {about['machine']}, {multiprocessing.cpu_count()} cores")
    figures = {name: parts[name](options.quick) for name in options.parts or parts}
    if options.json:
        options.json.write_text(json.dumps({"benchmark": "dataset", **about, **figures}, indent=2))


if __name__ == "__main__":
    main()
