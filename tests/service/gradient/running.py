"""The service in a thread, with its application at hand."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI
from gradientai import Gradient

from llama_index_finetune_structured.service.app import create_app
from llama_index_finetune_structured.service.settings import ServiceSettings
from tests.service.serving import wait_for


@contextmanager
def served(settings: ServiceSettings) -> Iterator[tuple[str, FastAPI]]:
    """Serve; gives the address and the application."""
    app = create_app(settings)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_for(lambda: server.started or not thread.is_alive())
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}", app
    finally:
        server.should_exit = True
        thread.join()


def sdk(host: str, token: str = "none") -> Gradient:
    """The SDK as it is, whose stub has no parameters."""
    make: Any = Gradient
    client: Gradient = make(access_token=token, workspace_id="any", host=host)
    return client
