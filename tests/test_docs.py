"""The README and the pages in docs/: every Python block runs, in the page's order; every link leads somewhere."""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from llama_index_finetune_structured.local.model import base_models
from tests.fakes.gradient_server import GradientServer
from tests.fakes.openai_server import OpenAIServer
from tests.pages import NOT_RUN, blocks, compiled, readme_names

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MIDDLES = {"README.md": readme_names}
WALKED = "# ask.py"  # run word for word, with the commands before it, by tests/cli/test_walk.py


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
    monkeypatch.setattr(base_models, "_converted", lambda _: (found.path, found.sha256))


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # plain peft's own
@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20")  # LlamaIndex's agents
@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince211")
@pytest.mark.usefixtures("_providers", "_tiny_default_model")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_python_block_of_a_page_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"__name__": page.name, **MIDDLES.get(page.name, dict)()}
    for line, code in blocks(page):
        block = compiled(page, line, code)
        if code.startswith((NOT_RUN, WALKED)):
            continue
        result = eval(block, names)
        if inspect.isawaitable(result):
            asyncio.run(_finish(result))


async def _finish(result: object) -> None:
    await result  # type: ignore[misc]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_to_one(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    files = [link for link in links if "://" not in link]
    assert [link for link in files if not (page.parent / link).exists()] == []


def test_the_readme_leads_to_every_page() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [page.name for page in PAGES[1:] if f"docs/{page.name}" not in readme] == []
