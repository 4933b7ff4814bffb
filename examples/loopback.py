"""Loopback servers for the examples, used only where no endpoint is given in the environment.

They speak OpenAI's and Gradient's protocols over HTTP to the real SDKs, but no model is behind them:
``stand_in.py`` answers. A fine-tuned stand-in answers as the teacher does, whatever it was trained on.
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

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the servers live among the tests

WEAK_MODELS = ("gpt-4.1-mini",)


def use_openai() -> None:
    """Start a stand-in for OpenAI, unless $OPENAI_API_BASE names a server; that one is used then."""
    if os.environ.get("OPENAI_API_BASE"):
        return
    from tests.fakes.openai_server import OpenAIServer

    server = OpenAIServer(answer_chat=_chat_answer, script=("queued", "running", "succeeded"))
    os.environ["OPENAI_API_BASE"], os.environ["OPENAI_API_KEY"] = _start(server).base, server.key


def use_gradient() -> None:
    """Start a stand-in for Gradient, unless $GRADIENT_API_URL names a server; that one is used then."""
    if os.environ.get("GRADIENT_API_URL"):
        return
    from tests.fakes.gradient_server import GradientServer

    server = GradientServer(answer=_gradient_answer)
    os.environ["GRADIENT_API_URL"] = _start(server).host
    os.environ["GRADIENT_ACCESS_TOKEN"], os.environ["GRADIENT_WORKSPACE_ID"] = server.token, server.workspace


def _start(server: Any) -> Any:
    """Run it until the example ends; its jobs are forgotten then, so the run journals go as well."""
    if "FINETUNE_STRUCTURED_RUNS" not in os.environ:
        runs = tempfile.TemporaryDirectory(prefix="stand-in-runs-")
        os.environ["FINETUNE_STRUCTURED_RUNS"] = runs.name
        atexit.register(runs.cleanup)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # bm25s lets every logger speak
    server.__enter__()
    atexit.register(server.__exit__)
    print(f"No provider is given: a stand-in answers at {server.origin}, no model is behind it.")
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
