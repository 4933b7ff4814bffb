"""Loopback servers for the examples, started only where the environment names no endpoint.

They implement OpenAI's and Gradient's protocols over HTTP for the real SDKs, without a model: ``stand_in.py``
answers. A "fine-tuned" stand-in gives the teacher's answers, whatever it was trained on.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from stand_in import answer, untrained

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the servers are in tests/fakes

WEAK_MODELS = ("gpt-4.1-mini",)


def use_openai() -> None:
    """Start a stand-in for OpenAI, unless $OPENAI_API_BASE names a server."""
    if os.environ.get("OPENAI_API_BASE"):
        return
    from tests.fakes.openai_server import OpenAIServer

    server = OpenAIServer(answer_chat=_chat_answer, script=("queued", "running", "succeeded"))
    os.environ["OPENAI_API_BASE"], os.environ["OPENAI_API_KEY"] = _start(server).base, server.key


def use_gradient() -> None:
    """Start a stand-in for Gradient, unless $GRADIENT_API_URL names a server."""
    if os.environ.get("GRADIENT_API_URL"):
        return
    from tests.fakes.gradient_server import GradientServer

    server = GradientServer(answer=_gradient_answer)
    os.environ["GRADIENT_API_URL"] = _start(server).host
    os.environ["GRADIENT_ACCESS_TOKEN"], os.environ["GRADIENT_WORKSPACE_ID"] = server.token, server.workspace


def _start(server: Any) -> Any:
    """Run the server until the example ends.

    Its jobs are lost then, so the run journals are written to a temporary folder.
    """
    if "LLAMA_INDEX_FINETUNE_STRUCTURED_RUNS" not in os.environ:
        runs = tempfile.TemporaryDirectory(prefix="stand-in-runs-")
        os.environ["LLAMA_INDEX_FINETUNE_STRUCTURED_RUNS"] = runs.name
        atexit.register(runs.cleanup)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # bm25s sets every logger to INFO
    server.__enter__()
    atexit.register(server.__exit__)
    print(f"No provider is set: a stand-in at {server.origin} answers with regular expressions, not a model.")
    return server


def _chat_answer(body: dict[str, Any]) -> str:
    from tests.fakes.answers import schema_in

    prompt = "\n".join(str(message.get("content") or "") for message in body["messages"])
    if body.get("tools"):
        name = body["tools"][0]["function"]["name"]
    elif body.get("response_format"):
        name = body["response_format"]["json_schema"]["name"]
    else:
        name = (schema_in(prompt) or {}).get("title")
    return (untrained if body["model"] in WEAK_MODELS else answer)(prompt, name)


def _gradient_answer(prompt: str, is_tuned: bool) -> str:
    from tests.fakes.answers import schema_in

    if not is_tuned:
        return "Sure! Here is something that fits, more or less."
    return answer(prompt, (schema_in(prompt) or {}).get("title"))
