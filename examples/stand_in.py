"""The stand-in for a model: regular expressions that find citations, and a few templates.

The loopback servers of ``loopback.py`` have no model. These answers are deterministic and as good as a regular
expression can be; they show that the parts work together, not that training helps.
"""

from __future__ import annotations

import json
import re
from typing import Any

from llama_index_finetune_structured.demo.corpus import parse_card

_NAME = r"[A-Z][^\W\d_]+(?:-[A-Z][^\W\d_]+)*"
_AUTHORS = rf"({_NAME})(?: et al\.| and {_NAME})?"
_NARRATIVE = re.compile(rf"{_AUTHORS} \((\d{{4}})\)")  # Vaswani et al. (2017)
_PARENTHESIS = re.compile(r" ?\(([^()]*\d{4})\)")  # (Devlin et al., 2019)
_INSIDE = re.compile(rf"{_AUTHORS}, (\d{{4}})")
_SENTENCE_END = re.compile(r"(?<=[.!?])(?<!al\.) (?=[A-Z])")
_CONTEXT = re.compile(r"-{10,}\n(.*?)\n-{10,}", re.DOTALL)
_QUERY = re.compile(r"Query: (.*?)\n", re.DOTALL)
_WORD = re.compile(r"[^\W_]+")
_STOP = frozenset(
    re.findall(r"\w+", "a an and are at be by for from in is it its of on or that the to was which")
)


def citations(text: str) -> list[dict[str, Any]]:
    """Author, year and description of every citation in the text, in order."""
    found = []
    for sentence in sentences(text):
        marks = list(_NARRATIVE.finditer(sentence))
        marks += [
            inside for outer in _PARENTHESIS.finditer(sentence) for inside in _INSIDE.finditer(outer[1])
        ]
        desc = " ".join(_PARENTHESIS.sub("", _NARRATIVE.sub("", sentence)).strip(" .,;").split())
        found += [{"author": mark[1], "year": int(mark[2]), "desc": desc} for mark in marks]
    return found


def sentences(text: str) -> list[str]:
    """The sentences of a text with a PDF's line breaks; "et al." does not end one."""
    joined = " ".join(re.sub(r"(?<=\w)-\n(?=\w)", "-", text).split())
    return _SENTENCE_END.split(joined)


def cited_for(context: str, query: str) -> list[dict[str, Any]]:
    """The citations whose descriptions share the most words with the question."""
    found = citations(context)
    shared = [len(_words(one["desc"]) & _words(query)) for one in found]
    return [one for one, count in zip(found, shared, strict=True) if count == max(shared)]


def best_sentence(context: str, query: str) -> str:
    """The sentence that shares the most words with the question."""
    return max(sentences(context), key=lambda sentence: len(_words(sentence) & _words(query)))


def citation_questions(context: str) -> list[str]:
    """One question for each citation, which asks for the citation of some words."""
    return [f'Which citations go with "{_opening(one["desc"])}"?' for one in citations(context)]


def work_questions(context: str) -> list[str]:
    """One question for each citation, which asks what it is cited for."""
    return [f"What is the work of {one['author']} ({one['year']}) cited for?" for one in citations(context)]


def album(prompt: str) -> dict[str, Any]:
    """An invented album: one song for each word of the film's name, its length from the word's."""
    match = re.search(r"movie (.+?) as inspiration", prompt)
    film = match[1] if match else "Untitled"
    songs = [{"title": f"{word} Theme", "length_seconds": 30 * len(word)} for word in film.split()]
    return {"name": f"{film}: Songs", "artist": "The Stand-Ins", "songs": songs}


def api_card(prompt: str) -> str:
    """The card of the function whose documentation stands before "Question:", by a docstring parser."""
    match = re.search(r"function: (\w+)\n\n(.*)\n\nQuestion: ", prompt, re.DOTALL)
    return parse_card(match[1], match[2]).model_dump_json() if match else "{}"


def judgement(prompt: str) -> str:
    """A score from 1 to 5: the word overlap of "Reference Answer" and "Generated Answer"."""
    parts = re.search(r"## Reference Answer\n(.*?)\n## Generated Answer\n(.*)", prompt, re.DOTALL)
    gold, answer = (_words(parts[1]), _words(parts[2])) if parts else (set(), set())
    f1 = 2 * len(gold & answer) / max(1, len(gold) + len(answer))
    return f"{1 + 4 * f1:.1f}\nWord overlap F1 {f1:.2f}, counted by a stand-in."


def answer(prompt: str, schema_name: str | None) -> str:
    """The answer of the stand-in teacher: JSON where the request has a schema, else text."""
    context = (_CONTEXT.search(prompt) or [None, prompt])[1]
    query = (_QUERY.search(prompt) or [None, prompt])[1]
    if schema_name == "Album":
        return json.dumps(album(prompt))
    if schema_name == "Response":
        return json.dumps({"citations": cited_for(context, query)})
    if schema_name == "ApiCard":
        return api_card(prompt)
    if schema_name == "_QuestionList":
        ask = work_questions if "what a work is cited for" in prompt else citation_questions
        return json.dumps({"questions": ask(context)})
    if "## Generated Answer" in prompt:
        return judgement(prompt)
    return best_sentence(context, query)


def untrained(prompt: str, schema_name: str | None) -> str:
    """The answer of the stand-in for a weak model: shortened objects, or the whole context as text."""
    if schema_name == "Response":
        full = json.loads(answer(prompt, schema_name))["citations"]
        return json.dumps({"citations": [{**one, "desc": one["desc"].split(" ")[0]} for one in full]})
    if schema_name is None:
        return " ".join((_CONTEXT.search(prompt) or [None, prompt])[1].split())
    return answer(prompt, schema_name)


def _opening(text: str) -> str:
    return " ".join(text.split(" ")[:8])


def _words(text: str) -> set[str]:
    return {word for word in _WORD.findall(text.lower()) if word not in _STOP}
