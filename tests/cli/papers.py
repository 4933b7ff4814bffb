"""A folder of papers, and the replies of a loopback teacher that reads its answers from the prompt."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pymupdf

SCHEMA = """\
name: Finding
description: What a cited work showed.
fields:
  author: string
  year: integer
  finding: {type: string, description: In three words., optional: true}
"""
_FINDING = re.compile(r"(\w+) \((\d{4})\) showed that ([\w ]+)\.")
_QUESTION = re.compile(r"Query: What did (\w+) show\?")
_NAMES = ("alpha", "beta", "gamma")


def questions(paper: str, count: int = 2) -> list[str]:
    return [f"What did {paper.title()}{n} show?" for n in range(count)]


def text_of(paper: str, count: int = 2) -> str:
    return "\n".join(f"{paper.title()}{n} ({1990 + n}) showed that {paper} {n} works." for n in range(count))


def write_pdf(path: Path, text: str) -> None:
    document = pymupdf.open()
    document.new_page().insert_text((72, 72), text.split("\n"))
    document.save(path)
    document.close()


def write_folder(root: Path) -> Path:
    """Two PDFs and a Markdown file, two findings each, in ``root/papers``; the schema beside them."""
    folder = root / "papers"
    folder.mkdir(parents=True)
    for name in _NAMES[:2]:
        write_pdf(folder / f"{name}.pdf", text_of(name))
    (folder / "gamma.md").write_text(text_of("gamma"), encoding="utf-8")
    (root / "schema.yaml").write_text(SCHEMA, encoding="utf-8")
    return folder


def reply(request: dict[str, Any]) -> dict[str, Any]:
    """Questions about the context's findings, or one finding, in the format that the request names."""
    prompt = "\n".join(str(message["content"]) for message in request["messages"])
    found = {author: (year, what) for author, year, what in _FINDING.findall(prompt)}
    question = _QUESTION.search(prompt)
    if question is None:
        listed = [f"What did {author} show?" for author in found]
        return _formatted(request, {"questions": listed}, "\n".join(listed))
    if question[1] not in found:
        return {"content": "I do not know."}
    year, what = found[question[1]]
    value = {"author": question[1], "year": int(year), "finding": what}
    return _formatted(request, value, json.dumps(value))


def _formatted(request: dict[str, Any], value: dict[str, Any], text: str) -> dict[str, Any]:
    if request.get("response_format"):
        return {"content": json.dumps(value)}
    if not request.get("tools"):
        return {"content": text}
    function = {"name": request["tools"][0]["function"]["name"], "arguments": json.dumps(value)}
    return {"tool_calls": [{"id": "call_1", "type": "function", "function": function}]}
