"""A folder of documents about songs, and a teacher on loopback that reads them. The facts are in the text."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pymupdf

SCHEMA = """\
name: Song
description: A song and who sings it.
fields:
  title: {type: string, description: The song's title.}
  singer: string
  year: integer?
"""
_FACT = re.compile(r"The song (\w+) was sung by (\w+) in (\d{4})\.")
_ASKED = re.compile(r"Query: Who sang (\w+)\?")


def facts(document: str, count: int = 4) -> list[tuple[str, str, int]]:
    """Title, singer and year of a document's songs."""
    return [(f"{document}song{n}", f"{document}singer{n}", 1960 + n) for n in range(count)]


def text_of(document: str, count: int = 4) -> str:
    return "\n\n".join(f"The song {t} was sung by {s} in {y}." for t, s, y in facts(document, count))


def write_pdf(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    document = pymupdf.open()
    page = document.new_page()
    page.insert_text((72, 72), text.split("\n\n"))
    document.save(path)
    document.close()


def write_folder(folder: Path) -> Path:
    """Two PDFs and a Markdown file, twelve songs; the schema stands beside the folder."""
    for name in ("alpha", "beta"):
        write_pdf(folder / f"{name}.pdf", text_of(name))
    (folder / "gamma.md").write_text(text_of("gamma"), encoding="utf-8")
    (folder.parent / "schema.yaml").write_text(SCHEMA, encoding="utf-8")
    return folder


def reply(request: dict[str, Any]) -> dict[str, Any] | int:
    """Questions about the songs in the context, or the song asked for; as a tool call where tools are sent."""
    prompt = "\n".join(str(message["content"]) for message in request["messages"])
    context = prompt.split("---------------------")[1]
    found = _FACT.findall(context)
    asked = _ASKED.search(prompt)
    if asked is None:
        return _given(request, {"questions": [f"Who sang {title}?" for title, _, _ in found]}, "questions")
    song = next(((t, s, y) for t, s, y in found if t == asked[1]), None)
    if song is None:
        return {"content": "I do not know."}
    return _given(request, {"title": song[0], "singer": song[1], "year": int(song[2])}, None)


def _given(request: dict[str, Any], value: dict[str, Any], lines: str | None) -> dict[str, Any]:
    if request.get("tools"):
        function = {"name": request["tools"][0]["function"]["name"], "arguments": json.dumps(value)}
        return {"tool_calls": [{"id": "call_1", "type": "function", "function": function}]}
    return {"content": "\n".join(value[lines]) if lines else json.dumps(value)}
