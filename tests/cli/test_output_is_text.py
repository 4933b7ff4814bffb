"""Whatever names, answers, documents and servers hold, the commands print it as text, in valid HTML, SVG and JSON."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from llama_index_finetune_structured import Example, FinetuneDataset, Scorecard, compare
from llama_index_finetune_structured.cli import app
from llama_index_finetune_structured.engines.hosted.journal import Run, RunJournal
from llama_index_finetune_structured.example import Message
from tests import exporting

HOSTILE = (
    "[/x][bold]\x1b[2J\x1b]8;;http://x\x1b\\\r\x07\u202e\u2028\x9b31m\x00\ufffe[link=http://x]"
    ":100:</script><b a='\"&"
)
# Without half surrogate pairs, which no file of this package holds.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from(HOSTILE), max_size=40)
STYLE = re.compile(r"\x1b\[[\d;]*m")  # rich's own, on a terminal
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def planted(max_examples: int) -> Callable[[Any], Any]:
    """Run a test with any text, and with the worst that is known."""

    def decorate(test: Any) -> Any:
        test = example(text=HOSTILE)(given(text=TEXTS)(test))
        fixtures = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
        return settings(max_examples=max_examples, suppress_health_check=fixtures)(test)

    return decorate


@contextmanager
def folder_of_its_own(path: Path) -> Iterator[Path]:
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    yield path
    shutil.rmtree(path)


def name_of(text: str) -> str:
    """A file's name with the text in it."""
    return f"n{text}".replace("/", "_").replace("\0", "_").encode()[:200].decode(errors="ignore")


def shown(*words: str, progress: bool = False) -> str:
    """What a command prints on a terminal, and the JSON of its ``--json``: neither has a control character."""
    on_terminal = CliRunner().invoke(app, list(words), env={"FORCE_COLOR": "1", "COLUMNS": "120"})
    out = STYLE.sub("", on_terminal.output)
    assert "Traceback" not in out, out
    found = CONTROLS.search(out.replace("\r", "") if progress else out)
    assert not found, (words, found, out)
    as_json = CliRunner().invoke(app, [*words, "--json"], env={"COLUMNS": "120"})
    assert as_json.exit_code == 2 or json.loads(as_json.stdout) is not None
    plain = STYLE.sub("", as_json.output)  # of typer's own errors
    assert not CONTROLS.search(plain.replace("\r", "") if progress else plain)
    return out


@planted(25)
def test_jobs(work: Path, text: str) -> None:
    with folder_of_its_own(work / "runs") as runs:
        run = Run(
            engine="openai", provider=text, api_base=text, base_model=text, data_path=text, job_id=f"j{text}",
            status=text, fine_tuned_model=text, error=text, request={text: text}, files={text: text},
        )  # fmt: skip
        RunJournal(runs / name_of(text)).write(run)
        shown("jobs", "list", "--runs", str(runs))
        shown("jobs", "show", name_of(text), "--runs", str(runs))
        shown("jobs", "show", f"j{text}", "--runs", str(runs))
        shown("jobs", "show", f"no {text}", "--runs", str(runs))
        (runs / name_of(text) / "run.json").write_text(json.dumps({text: text}), encoding="utf-8")
        shown("jobs", "list", "--runs", str(runs))


def _row(text: str, name: str) -> Example:
    value = {"a": f"x{text}", f"b{text}": [f"y{text}", f"z{text}"], "c": {f"d{text}": f"x{text}"}}
    schema = {"type": "object", "title": text, "description": text, "properties": {key: {} for key in value}}
    return Example(
        messages=(Message(role="user", content=f"{name} {text}"),),
        answer=Message(role="assistant", content=json.dumps(value)),
        answer_schema=schema,
        schema_name=text,
        query=f"{name} {text}",
        document_id=f"{name[:-1]}{text}",
        model=text,
    )


def _card(text: str) -> Scorecard:
    def wrong(row: Example) -> Any:
        return {"a": f"no{text}", f"b{text}": [f"y{text}", f"new{text}"]}

    def broken(_: Example) -> Any:
        raise ConnectionError(text)

    systems: dict[str, Any] = {
        f"base{text}": lambda _: f"no JSON {text}",
        f"broken{text}": broken,
        f"tuned{text}": wrong,
        "teacher": lambda row: row.answer_object(),
    }
    data = [_row(text, f"row {n}") for n in range(4)]
    return compare(systems, data, show_progress=False, notes={f"n{text}": text})


class Elements(HTMLParser):
    """The elements of a page with their attributes' names, without their texts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[Any] = []
        self.text: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, sorted(name for name, _ in attrs)))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.found.append(f"/{tag}")

    def handle_endtag(self, tag: str) -> None:
        self.found.append(f"/{tag}")

    def handle_comment(self, data: str) -> None:
        self.found.append("a comment")

    def handle_decl(self, decl: str) -> None:
        self.found.append(decl)

    def handle_pi(self, data: str) -> None:
        self.found.append("an instruction")


def _page(text: str) -> Elements:
    _card(text).to_json("card.json")
    shown("report", "card.json", "--html", "page.html")
    page = Path("page.html").read_text(encoding="utf-8")
    assert not CONTROLS.search(page)
    return Elements(page)


@planted(12)
def test_report_page_and_picture(work: Path, text: str) -> None:
    page, plain = _page(text).found, _page("plain").found
    # how many legend lines and fields' parts there are depends on the texts' lengths; of what they are made does not
    assert {str(part) for part in page} == {str(part) for part in plain}
    assert page.count("/li") == plain.count("/li")
    assert page.count("/td") == plain.count("/td")
    assert page.count("/span") == plain.count("/span")
    card = Scorecard.from_json("card.json")
    picture = ElementTree.parse(card.to_svg("picture.svg"))
    assert {element.tag.rpartition("}")[2] for element in picture.iter()} <= {
        "svg", "title", "style", "rect", "text", "path",
    }  # fmt: skip


def test_the_pages_policy_allows_its_own_style_and_nothing_else(work: Path) -> None:
    _page(HOSTILE)
    page = Path("page.html").read_text(encoding="utf-8")
    policies = re.findall(r"Content-Security-Policy' content=\"([^\"]*)\"", page)
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]
    tags = [part for part in Elements(page).found if isinstance(part, tuple)]
    assert {tag for tag, _ in tags}.isdisjoint(
        {"script", "link", "img", "iframe", "object", "form", "base", "a"}
    )
    assert not [
        name for _, names in tags for name in names if name.startswith("on") or name in ("href", "src")
    ]
    assert page.index("Content-Security-Policy") < page.index("<style>")


@planted(15)
def test_check(work: Path, text: str) -> None:
    lines = [
        json.dumps({"messages": [{"role": text, "content": text}]}),
        json.dumps({text: text}),
        json.dumps(
            {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": f"a{text}"}]}
        ),
        f'{{"{text}',
    ]
    path = work / f"{name_of(text)}.jsonl"
    path.write_text("\n".join(line.replace("\n", " ") for line in lines), encoding="utf-8")
    for target in ("openai", "gradient", text):
        shown("check", str(path), "--target", target)
    path.unlink()


@planted(10)
def test_build(work: Path, text: str) -> None:
    with folder_of_its_own(work / "docs") as docs:
        (docs / f"{name_of(text)}.md").write_text(
            f"Alpha0 (1990) showed that {text} works.", encoding="utf-8"
        )
        (docs / f"{name_of(text)}.pdf").write_bytes(b"no pdf")
        pair = {"query": f"What did {text} show?", "response": {"author": text, "year": 1990}}
        (work / "pairs.jsonl").write_text(json.dumps(pair) + "\n", encoding="utf-8")
        words = (
            "--schema",
            "schema.yaml",
            "--pairs",
            "pairs.jsonl",
            "--output",
            f"{name_of(text)}/data.jsonl",
        )
        shown("build", str(docs), *words)
        (work / "bad.yaml").write_text(
            json.dumps({"name": text, "fields": {f"f{text}": text}}), encoding="utf-8"
        )
        shown("build", str(docs), "--schema", "bad.yaml", *words[2:])
        (work / "bad.py").write_text(f"raise ValueError({text!r})\n", encoding="utf-8")
        shown("build", str(docs), "--schema", "bad.py:Finding", *words[2:])
        shutil.rmtree(work / name_of(text), ignore_errors=True)


@planted(15)
def test_options_that_are_refused(work: Path, text: str) -> None:
    for words in ((text,), ("report", text), ("report", "x", f"y{text}"), ("jobs", text), (f"--{text}",),
                  ("check", "x", f"--{text}"), ("check", "x", "--epochs", text), ("eval", text, text),
                  ("export", text, "out", "--format", text), ("train", text, "--base-model", text)):  # fmt: skip
        shown(*[word.replace("\0", "") for word in words])


def test_train_and_eval(work: Path) -> None:
    text = HOSTILE.replace("\0", "")
    base = exporting.save_base("llama", work / "base")
    data = f"{name_of(text)}.jsonl"
    FinetuneDataset([_row(text, f"row {n}") for n in range(4)]).save(data)
    trained = shown(
        "train", data, "--base-model", str(base), "--output", "run", "--epochs", "1", progress=True
    )
    assert "Error" not in trained
    scored = shown("eval", "run", data, "--limit", "2", "--output", f"e{name_of(text)}", progress=True)
    assert "2 examples" in scored
    shown("train", data, "--base-model", f"./{name_of(text)}", "--output", "run2", progress=True)
