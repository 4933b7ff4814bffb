"""Training files for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SCHEMA = {
    "title": "Album",
    "type": "object",
    "properties": {"name": {"type": "string"}},
    "required": ["name"],
}


def text_row(number: int) -> dict[str, Any]:
    prompt = f"Film {number}\nHere's a JSON schema to follow:\n{json.dumps(SCHEMA)}"
    return _row(prompt, {"content": '{"name": "x"}'})


def json_schema_row(number: int) -> dict[str, Any]:
    return _row(f"Film {number}", {"content": '{"name": "x"}'})


def tools_row(number: int) -> dict[str, Any]:
    call = {"name": "Album", "arguments": '{"name": "x"}'}
    answer = {"content": None, "tool_calls": [{"id": "call_1", "type": "function", "function": call}]}
    tools = [{"type": "function", "function": {"name": "Album", "parameters": SCHEMA}}]
    return {**_row(f"Film {number}", answer), "tools": tools, "parallel_tool_calls": False}


def prose_row(number: int) -> dict[str, Any]:
    return _row(f"Question {number}", {"content": "An answer."})


def _row(prompt: str, answer: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", **answer}]}


def write_rows(path: Path, row: Any = tools_row, count: int = 12) -> Path:
    path.write_text("".join(json.dumps(row(i)) + "\n" for i in range(count)), encoding="utf-8")
    return path
