"""Structured answers a minute: through the service, by OpenAI's SDK, beside LoraLLM in the same process.

    python benchmarks/service.py [--adapter DIR] [--adapters N] [--base FOLDER] [--questions N] [--clients N] [--quick]
        [--json FILE]

The demo's test questions with their retrieved documentation, as many at a time as there are clients; the same
weights, prompts and grammar for both, which are checked to give the same texts. The two take turns, and a first turn of
each is not counted. Without ``--adapter`` the base model answers; with it, the questions are also put to
``--adapters`` copies of it together, whose answers have to be those of the one.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from generate import questions
from llama_index.core.base.llms.types import ChatMessage
from openai import AsyncOpenAI

from llama_index_finetune_structured import LoraLLM
from llama_index_finetune_structured.answer_values import class_schema
from llama_index_finetune_structured.demo.corpus import ApiCard
from llama_index_finetune_structured.demo.teacher import QA_TEMPLATE
from llama_index_finetune_structured.llms.structured import without_last_repetition
from llama_index_finetune_structured.local.model.adapter import find_adapter, read_card
from llama_index_finetune_structured.local.model.base_models import DEFAULT_BASE_MODEL
from llama_index_finetune_structured.service.app import create_app
from llama_index_finetune_structured.service.models import ServedModel
from llama_index_finetune_structured.service.settings import ServiceSettings

FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "ApiCard", "schema": class_schema(ApiCard)}}
ANSWER_TOKENS, TURNS = 256, 3
QUICK_QUESTIONS, QUICK_TURNS = 8, 1


@contextmanager
def serving(models: Mapping[str, ServedModel]) -> Iterator[str]:
    """The address of a service that has the models, by the names that are asked for."""
    with tempfile.TemporaryDirectory() as folder:
        app = create_app(ServiceSettings(folder=Path(folder), workers=False))
        app.state.models.find = lambda name, *_: models[name]
        server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error"))
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
        finally:
            server.should_exit = True
            thread.join()


async def turn(
    ask: Callable[[str], Awaitable[str]], prompts: list[str], clients: int
) -> tuple[float, list[str]]:
    """Answers a minute, and the answers."""
    places = asyncio.Semaphore(clients)

    async def one(prompt: str) -> str:
        async with places:
            return await ask(prompt)

    begun = time.perf_counter()
    texts = await asyncio.gather(*map(one, prompts))
    return 60 * len(texts) / (time.perf_counter() - begun), texts


def without_end(text: str) -> str:
    """An answer without the repetition at which the grammar ended a list, as in whole replies of the service."""
    try:
        return json.dumps(without_last_repetition(json.loads(text)))
    except ValueError:  # cut by the limit
        return text


async def measure(
    llm: LoraLLM, url: str, names: list[str], prompts: list[str], clients: int, turns: int
) -> dict[str, list[float]]:
    """Answers a minute of each turn, by system. ``names``: of the models of the service; several are asked in turns."""
    sdk = AsyncOpenAI(base_url=url, api_key="none", timeout=3600)
    next_name = itertools.cycle(names)

    async def direct(prompt: str) -> str:
        message = ChatMessage(role="user", content=prompt)
        reply = await llm.achat([message], response_format=FORMAT, max_tokens=ANSWER_TOKENS)
        return reply.message.content or ""

    async def service(prompt: str, name: str = names[0]) -> str:
        asked: Any = [{"role": "user", "content": prompt}]
        reply = await sdk.chat.completions.create(
            model=name, messages=asked, response_format=FORMAT, max_tokens=ANSWER_TOKENS
        )
        return reply.choices[0].message.content or ""

    async def together(prompt: str) -> str:
        return await service(prompt, next(next_name))

    async def streamed(prompt: str) -> str:
        asked: Any = [{"role": "user", "content": prompt}]
        stream: Any = await sdk.chat.completions.create(
            model=names[0], messages=asked, response_format=FORMAT, max_tokens=ANSWER_TOKENS, stream=True
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    systems = {"LoraLLM": direct, "service": service, "service, streamed": streamed}
    if len(names) > 1:
        systems[f"{len(names)} adapters"] = together
    speeds: dict[str, list[float]] = {name: [] for name in systems}
    for number in range(1 + turns):
        answers = set()
        for name, ask in systems.items():
            speed, texts = await turn(ask, prompts, clients)
            answers.add(tuple(map(without_end, texts)))
            speeds[name] += [speed] if number else []
        if len(answers) > 1:
            raise SystemExit("the systems gave different answers")
    return speeds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--adapter", type=Path)
    parser.add_argument(
        "--adapters", type=int, default=8, help="copies of the adapter that are asked together"
    )
    parser.add_argument("--base", default=DEFAULT_BASE_MODEL)
    parser.add_argument("--questions", type=int, default=24)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--quick", action="store_true", help="8 questions and 1 turn, not 24 and 3")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    adapter = None if args.adapter is None else find_adapter(args.adapter)
    base = args.base if adapter is None else read_card(adapter).base_model
    options: dict[str, Any] = {"confidence": False}  # as in the service, where nobody asks for trust
    llm = LoraLLM(base_model=base, **options) if adapter is None else LoraLLM.from_adapter(adapter, **options)
    count = min(args.questions, QUICK_QUESTIONS) if args.quick else args.questions
    prompts = [QA_TEMPLATE.format(**question) for question in questions(count)]
    turns = QUICK_TURNS if args.quick else TURNS
    with tempfile.TemporaryDirectory() as folder:
        adapters = [adapter]
        for number in range(1, 1 if adapter is None else args.adapters):
            adapters.append(Path(shutil.copytree(adapter, Path(folder) / str(number))))
        models = {
            f"served-{number}": ServedModel(f"served-{number}", base, each, 0, "local")
            for number, each in enumerate(adapters)
        }
        with serving(models) as url:
            speeds = asyncio.run(measure(llm, url, list(models), prompts, args.clients, turns))
    for name, each in speeds.items():
        print(
            f"{name:20}{statistics.median(each):8.1f} answers a minute ({', '.join(f'{one:.1f}' for one in each)})"
        )
    if args.json:
        args.json.write_text(json.dumps(speeds, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
