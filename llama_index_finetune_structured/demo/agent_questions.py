"""Questions to the demo's agent, made by templates from the documented functions, in ten kinds."""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import product

from .agent_tools import AgentTools, DocumentedFunction

__all__ = ["KINDS", "AgentQuestion", "generate_agent_questions", "read_question"]

_SMALL_TALK = "small talk"
_GREETINGS = ("Hello", "Hi", "Hey", "Hi there", "Good morning", "Good afternoon", "Good evening")
_THANKS = ("Thanks", "Thank you", "Many thanks", "Great, thanks", "Perfect, thank you", "Thanks a lot")
_WORDINGS = {
    "search": (
        "Which function gives {topic}?",
        "I need {topic}: what is the function called?",
        "Name the function for {topic}.",
    ),
    "signature": (
        "What parameters does {name} take?",
        "List the parameters of {name}.",
        "How do I call {name}?",
    ),
    "default": (
        "What is the default of {parameter} in {name}?",
        "Which value does {parameter} of {name} have by default?",
        "I leave out {parameter} when I call {name}. Which value is used?",
    ),
    "comparison": (
        "Which parameters do {first} and {second} share?",
        "What do the parameters of {first} and {second} have in common?",
        "Compare {first} and {second}: which parameters do both take?",
    ),
    "arithmetic": ("What is {expression}?", "Compute {expression}.", "How much is {expression}?"),
    "search, then signature": (
        "What are the parameters of the function that gives {topic}?",
        "I need {topic}: what does that function take?",
        "Look up the function for {topic} and list its parameters.",
    ),
    "two signatures": (
        "What parameters do {first} and {second} take?",
        "List the parameters of {first} and of {second}.",
        "How do I call {first}, and how {second}?",
    ),
    "total": (
        "How many parameters do {first} and {second} have together?",
        "Add up the numbers of parameters of {first} and {second}.",
        "What is the total number of parameters of {first} and {second}?",
    ),
    _SMALL_TALK: (
        "{greeting}!",
        "{greeting}, how are you?",
        "{greeting}, who are you?",
        "{greeting}, what can you do?",
        "{thanks}!",
        "{thanks}, that is all.",
        "{thanks}, that helped.",
        "{thanks}, goodbye!",
    ),
}
_MISSPELLED = "misspelled name"
KINDS = (*_WORDINGS, _MISSPELLED)
"""The kinds of questions. A misspelled name stands in the words of "signature": the tool's error tells them apart."""

_NAME = r"\w+"
_FORMS = {
    "topic": ".+",
    "expression": r"[\d .()+*/-]+",
    "greeting": "|".join(_GREETINGS),
    "thanks": "|".join(_THANKS),
}
_VERB = re.compile(
    r"(?:Returns?|Computes?|Calculates?|Finds?|Generates?|Yields?|Creates?) (?P<topic>(?:the|an?|all) [^\"]+?)\.?"
)


@dataclass(frozen=True)
class AgentQuestion:
    """A question; ``subject`` is the function that it is about, or its text where it is about none."""

    kind: str
    text: str
    subject: str


def _pattern(wording: str) -> re.Pattern[str]:
    """The wording with a named group for each of its fields."""
    return re.compile(
        re.sub(
            r"\\{(\w+)\\}", lambda field: f"(?P<{field[1]}>{_FORMS.get(field[1], _NAME)})", re.escape(wording)
        )
    )


_PATTERNS = [(kind, _pattern(wording)) for kind, wordings in _WORDINGS.items() for wording in wordings]


def read_question(text: str) -> tuple[str, dict[str, str]]:
    """The kind and the fields of a question in one of the known wordings.

    A misspelled name is read as "signature". Raises ValueError for any other text.
    """
    for kind, pattern in _PATTERNS:
        if match := pattern.fullmatch(text):
            return kind, match.groupdict()
    raise ValueError(
        f"{text!r} is none of the demo's questions, such as 'What parameters does pagerank take?'"
    )


def generate_agent_questions(
    tools: AgentTools, size: int, *, seed: int, without: Collection[str] = ()
) -> list[AgentQuestion]:
    """``size`` different questions about the functions of ``tools``; the kinds take turns.

    They are fewer where there are no more. The same seed gives the same ones. ``without``: texts that are not asked,
    such as those of the test.
    """
    lines = {kind: _of_kind(kind, tools, seed) for kind in KINDS}
    questions: dict[str, AgentQuestion] = {}
    while lines and len(questions) < size:
        for kind in list(lines):
            question = next(lines[kind], None)
            if question is None:
                del lines[kind]
            elif len(questions) < size and question.text not in without:
                questions.setdefault(question.text, question)
    return list(questions.values())


def _of_kind(kind: str, tools: AgentTools, seed: int) -> Iterator[AgentQuestion]:
    """The questions of one kind, in an order that depends on the seed."""
    rng = random.Random(f"{seed} {kind}")  # a source of its own, so that no kind depends on another
    if kind == _SMALL_TALK:
        fills = [(wording, a, b) for wording in _WORDINGS[kind] for a, b in product(_GREETINGS, _THANKS)]
        texts = list(dict.fromkeys(wording.format(greeting=a, thanks=b) for wording, a, b in fills))
        yield from (AgentQuestion(kind, text, text) for text in rng.sample(texts, len(texts)))
        return
    known = list(tools.functions.values())
    wordings = _WORDINGS["signature" if kind == _MISSPELLED else kind]
    for function in rng.sample(known, len(known)):
        fields = _fields(kind, function, tools, rng)
        if fields is not None:
            text = rng.choice(wordings).format(**fields)
            yield AgentQuestion(kind, text, text if kind == "arithmetic" else function.name)


def _fields(
    kind: str, function: DocumentedFunction, tools: AgentTools, rng: random.Random
) -> dict[str, str] | None:
    """What fills the template; None where no question of this kind can be asked about the function."""
    match kind:
        case "search" | "search, then signature":
            topic = _VERB.fullmatch(function.summary)
            found = topic is not None and tools.matches(topic["topic"])[0] == function.name
            return {"topic": topic["topic"]} if topic is not None and found else None
        case "signature":
            return {"name": function.name}
        case "default":
            given = [parameter.name for parameter in function.parameters if parameter.default is not None]
            return {"parameter": rng.choice(given), "name": function.name} if given else None
        case "arithmetic":
            a, b, c = (rng.randint(2, 99) for _ in range(3))
            return {"expression": rng.choice((f"{a} + {b} * {c}", f"{a} * {b}", f"({a} - {b}) * {c}"))}
        case "misspelled name":
            wrong = _misspelled(function.name, rng)
            right = wrong not in tools.functions and tools.near_names(wrong)[:1] == [function.name]
            return {"name": wrong} if right else None
    others = [f for f in tools.functions.values() if f.group == function.group and f != function]
    return {"first": function.name, "second": rng.choice(others).name} if others else None


def _misspelled(name: str, rng: random.Random) -> str:
    """The name with one letter left out, doubled, or exchanged with the next one."""
    at = rng.randrange(len(name) - 1)
    letter, following = name[at], name[at + 1]
    return name[:at] + rng.choice((following, letter * 2 + following, following + letter)) + name[at + 2 :]
