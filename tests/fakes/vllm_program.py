"""A program with the command line of ``vllm serve`` that answers ``/health`` and nothing else.

``FAKE_VLLM_FAILS``: a file; while it is there, the program removes it and ends with an error.
"""

from __future__ import annotations

import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path


class _Health(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 404)
        self.send_header("Content-Length", "0")
        self.end_headers()


def main() -> None:
    """Serve, with a process beside it, as vLLM's engine is."""
    fails = os.environ.get("FAKE_VLLM_FAILS")
    if fails and Path(fails).exists():
        Path(fails).unlink()
        sys.exit("CUDA out of memory")
    options = sys.argv[1:]
    engine = subprocess.Popen(["sleep", "1000"])
    print("TORCHDYNAMO_DISABLE", os.environ.get("TORCHDYNAMO_DISABLE"))
    print("arguments", *options, "pids", os.getpid(), engine.pid, flush=True)
    HTTPServer(("127.0.0.1", int(options[options.index("--port") + 1])), _Health).serve_forever()


if __name__ == "__main__":
    main()
