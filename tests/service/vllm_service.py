"""A service on loopback whose models are in a vLLM server, and what is asked of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llama_index.core.base.llms.types import ChatMessage

from llama_index_finetune_structured.answer_values import class_schema
from llama_index_finetune_structured.service.call_queue import CallQueue
from llama_index_finetune_structured.service.vllm.pool import VllmPool
from llama_index_finetune_structured.service.vllm.server import VllmServer
from tests.exporting import Colour
from tests.service.chat.chat_server import ChatServer

ASKED: Any = [{"role": "user", "content": "Describe colour 1."}]
CHAT = [ChatMessage("Describe colour 1.")]
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "Colour", "schema": class_schema(Colour)}}


class VllmService:
    """A service of the base model ``tiny``; adapters are added to its ``server``."""

    def __init__(
        self, folder: Path, base: Path, vllm: VllmServer, *, most_loaded: int = 8, wait_s: float = 20
    ) -> None:
        self.server = ChatServer(folder, {"tiny": base})
        self.pool = VllmPool(vllm, most_loaded=most_loaded)
        self.server.app.state.pool = self.pool
        self.server.app.state.calls = CallQueue(self.pool, wait_s=wait_s)

    def ask(self, model: str, **body: Any) -> Any:
        """The reply of a chat completion; with ``stream`` the list of its chunks."""
        with self.server.client(timeout=600) as client:
            reply = client.chat.completions.create(model=model, messages=ASKED, **body)
            return list(reply) if body.get("stream") else reply
