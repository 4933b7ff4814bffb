"""Side by side: answers from a slow teacher, preflight of a broken file, retrieval rows in bounded memory.

    python benchmarks/dataset.py [answers] [preflight] [memory]      (all three without arguments)

``answers``: 200 questions to a loopback teacher of 200 ms at concurrency 16, ours and a bare
``asyncio.gather`` over the same query engine in turns, beside the ideal and the reference's loop.
``preflight``: 1,000 malformed among 10,000 lines. ``memory``: 100,000 pairs over a BM25 retriever.
"""

from __future__ import annotations

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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

QUESTIONS, LATENCY_S, CONCURRENCY, ROUNDS = 200, 0.2, 16, 6
PAIRS, CHUNKS = 100_000, 2_000
WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in ("a", "e", "i", "o", "u") for c in "bdglmnrst"]


def teacher(port: Any) -> None:
    """Answers every chat request after LATENCY_S; one asyncio process, so that it is never what is slow."""
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
            except asyncio.IncompleteReadError:  # the client hung up
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


def raft_pack(llm: Any, questions: list[str]) -> str:
    """The time of the RAFT pack's own answering, or why there is none."""
    try:
        from llama_index.packs.raft_dataset import RAFTDatasetPack
    except ImportError as error:
        return f"RAFT pack: not measured ({error})"
    pack = RAFTDatasetPack("unused", llm=llm, embed_model="unused")
    started = time.perf_counter()
    for question in questions:
        pack.generate_label(question, "context")
    seconds = (time.perf_counter() - started) * QUESTIONS / len(questions)
    return f"RAFT pack's answers, one at a time  {seconds:6.2f} s   (from {len(questions)} questions)"


async def answers() -> None:
    from llama_index.core.query_engine import RetrieverQueryEngine
    from llama_index.llms.openai import OpenAI

    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=teacher, args=(there,), daemon=True)
    process.start()
    llm = OpenAI(model="gpt-4o-mini", api_key="sk-test", api_base=f"http://127.0.0.1:{here.recv()}/v1")
    engine = RetrieverQueryEngine.from_args(bm25(100), llm=llm)
    draw = random.Random(1)
    questions = [f"{text(draw, 8)} {n}" for n in range(QUESTIONS)]
    await gathered(engine, questions[:CONCURRENCY])
    times: dict[str, list[float]] = {"bare asyncio.gather": [], "answer_questions, under capture": []}
    for number in range(2 * ROUNDS):
        own_turn = number % 4 in (1, 2)
        with tempfile.TemporaryDirectory() as folder:
            if own_turn:
                times["answer_questions, under capture"].append(await ours(engine, questions, Path(folder)))
            else:
                times["bare asyncio.gather"].append(await gathered(engine, questions))
    started = time.perf_counter()
    for question in questions[:20]:
        await engine.aquery(question)
    loop = (time.perf_counter() - started) * QUESTIONS / 20
    print(f"answers: {QUESTIONS} questions, teacher {LATENCY_S * 1000:.0f} ms, concurrency {CONCURRENCY}")
    print(f"  ideal                              {math.ceil(QUESTIONS / CONCURRENCY) * LATENCY_S:7.2f} s")
    for name, seconds in times.items():
        spread = " ".join(f"{s:.2f}" for s in seconds)
        print(f"  {name:<34} {statistics.median(seconds):7.2f} s   (of {spread})")
    print(f"  the reference's loop, one at a time {loop:6.2f} s   (from 20 questions)")
    bare, own = (statistics.median(seconds) for seconds in times.values())
    print(f"  ours / bare: {own / bare:.3f}")
    print(f"  {raft_pack(llm, questions[:20])}")
    process.terminate()


def preflight() -> None:
    from llama_index_finetune_structured.dataset import FinetuneDataset, check

    data = FinetuneDataset.from_pairs([(f"question {n}", {"answer": n}) for n in range(10_000)])
    broken = [b"\xff", b'{"messages": [', b"[1]", b'{"query": "q"}', b'{"messages": [{"role": "wizard"}, 1]}']
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.jsonl"
        wrong = set(random.Random(0).sample(range(1, 10_001), 1_000))
        lines = (e.to_json().encode() for e in data)
        path.write_bytes(
            b"\n".join(broken[n % 5] if n in wrong else line for n, line in enumerate(lines, start=1))
        )
        started = time.perf_counter()
        report = check(path, target="openai")
        seconds = time.perf_counter() - started
    found = {problem.line for problem in report.problems if not problem.is_warning}
    print(f"preflight: 10,000 lines in {seconds:.1f} s; {len(found)} bad lines reported, {report.good} good")
    print(f"  exactly the malformed ones: {found == wrong}")


def memory() -> None:
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_memory)
    process.start()
    process.join()


def _resident_mb(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"no {field} in /proc/self/status: this measurement needs Linux")


def _memory() -> None:
    from llama_index_finetune_structured.dataset import RetrievalAugmentedDatasetBuilder

    def pairs() -> Iterator[tuple[str, str]]:
        draw = random.Random(2)
        return ((f"{text(draw, 8)} {n}", text(draw, 20)) for n in range(PAIRS))

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
        f"memory: {PAIRS} pairs over BM25 of {CHUNKS} chunks -> {rows} rows, {size:.0f} MB, {seconds:.0f} s"
    )
    print(f"  resident with the index {before:.0f} MB, peak {peak:.0f} MB: {peak - before:.0f} MB more")


if __name__ == "__main__":
    wanted = sys.argv[1:] or ["answers", "preflight", "memory"]
    print(f"Python {platform.python_version()}, {platform.machine()}, {multiprocessing.cpu_count()} cores")
    if "answers" in wanted:
        asyncio.run(answers())
    if "preflight" in wanted:
        preflight()
    if "memory" in wanted:
        memory()
