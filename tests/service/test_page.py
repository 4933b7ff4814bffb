"""The page: what it sends to a browser, and its use in a real one."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from llama_index_finetune_structured.service.settings import ServiceSettings
from tests.service.browser import CHROMIUM, Tab, browser
from tests.service.conftest import Running, Trained
from tests.service.serving import rows, serving

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
HOSTILE = "<img src=x onerror=document.title='taken'>"


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browser(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture
def signed_in(tab: Tab, service: Running) -> Tab:
    """A tab that has signed in with a new key, by mouse and keyboard."""
    _sign_in(tab, service, service.add_key())
    return tab


def _sign_in(tab: Tab, service: Running, key: str) -> None:
    tab.problems.clear()
    tab.resize(1200)
    tab.open("about:blank")
    tab.open(f"{service.base}/")
    tab.js("sessionStorage.clear()")
    tab.open("about:blank")
    tab.open(f"{service.base}/")
    tab.write("#key", key)
    tab.press("Enter", 13)
    tab.wait("!document.querySelector('#view-jobs').hidden", 30)


@pytest.mark.parametrize("path", ["/", "/page/app.js", "/page/style.css"])
def test_the_page_loads_nothing_from_elsewhere_and_runs_no_script_but_its_own(
    service: Running, path: str
) -> None:
    reply = httpx.get(service.base + path)
    assert reply.status_code == 200
    policy = reply.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert "https://" not in reply.text
    assert "innerHTML" not in reply.text
    if path == "/":
        assert 'data-keys="required"' in reply.text
        assert "style=" not in reply.text
        assert "onclick" not in reply.text


@needs_browser
def test_without_keys_the_page_opens_at_once(tab: Tab, tmp_path: Path) -> None:
    settings = ServiceSettings(folder=tmp_path / "service", bases={"tiny": "none"}, workers=False)
    with serving(settings) as base:
        tab.open(f"{base}/#/models")
        tab.wait("document.querySelectorAll('#model-rows tr').length === 1", 30)
        assert tab.text("#model-rows td") == "tiny"
        assert tab.js("document.querySelector('#sign-out').hidden")
        tab.click("#views a[href='#/jobs']")
        tab.wait("!document.querySelector('#no-jobs').hidden", 30)
        assert tab.js("document.activeElement.id") == "title-jobs"
        assert tab.js("document.querySelector('[aria-current]').innerText") == "Jobs"
        tab.open("about:blank")


@needs_browser
def test_a_wrong_key_is_refused_and_not_kept(tab: Tab, service: Running) -> None:
    tab.open(f"{service.base}/")
    tab.js("sessionStorage.clear()")
    tab.open("about:blank")
    tab.open(f"{service.base}/#/models")
    tab.write("#key", "fts-wrong")
    tab.press("Enter", 13)
    tab.wait("document.querySelector('#problem').innerText.includes('API key')", 30)
    assert tab.js("sessionStorage.length") == 0
    assert tab.js("location.search") == ""


@needs_browser
@pytest.mark.usefixtures("worker")
def test_a_job_is_made_and_its_model_is_asked_with_the_mouse_alone(signed_in: Tab, tmp_path: Path) -> None:
    tab, data, held_out = signed_in, tmp_path / f"{HOSTILE[:20]}.jsonl", tmp_path / "held-out.jsonl"
    data.write_bytes(rows().replace(b"Film 0", json.dumps(HOSTILE).encode()[1:-1]))
    held_out.write_bytes(rows(2))
    tab.click("#new-job summary")
    tab.choose_file("#training", data)
    tab.choose_file("#held-out", held_out)
    tab.write("#epochs", "2")
    tab.click("#start-job")
    tab.wait("document.querySelector('#job-status').innerText === 'succeeded'")
    tab.wait("document.querySelectorAll('#job-data details').length === 2", 30)
    assert "12 rows" in tab.text("#job-data")
    assert data.name in tab.text("#job-data")
    assert "successfully completed" in tab.text("#job-events li")
    assert tab.js("document.querySelectorAll('#job-chart polyline').length") == 2
    assert "held-out loss" in tab.js("document.querySelector('.chart').getAttribute('aria-label')")
    name = tab.text("#title-job")
    assert name.startswith("ft:tiny:local:")
    _see(tab, "job")
    tab.click("#view-job a[href='#/jobs']")
    tab.wait("document.querySelectorAll('#job-rows tr').length === 1", 30)
    assert "succeeded" in tab.text("#job-rows")
    assert tab.text("#job-rows td:nth-child(4)") != "–"
    _see(tab, "jobs")
    tab.click("#job-rows a")
    tab.click("#job-try")
    tab.wait(f"document.querySelector('#second').value === {json.dumps(name)}", 30)
    assert tab.js("document.querySelector('#first').value") == "tiny"
    tab.click("#take-row")
    tab.wait("document.querySelector('#message').value !== ''", 30)
    tab.click("#ask-both")
    tab.wait("document.querySelectorAll('#replies pre').length === 2")
    assert tab.text("#reply-first h2") == "tiny"
    assert "tokens" in tab.text("#reply-second")
    _see(tab, "playground")
    tab.click("#views a[href='#/models']")
    tab.wait("document.querySelectorAll('#model-rows tr').length === 2", 30)
    _see(tab, "models")
    assert tab.js("document.title") == "finetune-structured"
    assert tab.js("document.querySelectorAll('main img').length") == 0
    assert tab.problems == []


def _see(tab: Tab, view: str) -> None:
    """Nothing is wider than the window, at the width of a phone and of a desk; pictures where they are asked for."""
    for width, is_dark in ((390, True), (1200, False)):
        tab.resize(width, is_dark=is_dark)
        assert tab.js("document.documentElement.scrollWidth") <= width, view
        wide = "[...document.querySelectorAll('main *')].filter(e => e.checkVisibility()"
        wide += " && !e.closest('.scroll, pre, .sr')"
        wide += " && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML)"
        assert tab.js(wide) == [], view
        if folder := os.environ.get("PAGE_PICTURES"):
            tab.picture(Path(folder) / f"{view}-{width}.png")


@needs_browser
def test_an_answer_is_shown_with_its_confidence_and_evidence(
    tab: Tab, service: Running, trained: Trained
) -> None:
    _sign_in(tab, service, trained.client.api_key)
    tab.click("#views a[href='#/playground']")
    tab.wait("document.querySelector('#second').value.startsWith('ft:')", 30)
    tab.write("#message", "Film 3")
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 5}},
        "required": ["name"],
    }
    tab.js(
        "(f => { f.value = 'json_schema'; f.dispatchEvent(new Event('input', {bubbles: true})) })"
        "(document.querySelector('#form'))"
    )
    tab.write("#schema", json.dumps(schema))
    code = tab.text("#code-python")
    assert trained.client.api_key not in code + tab.text("#code-curl")
    compile(code, "code", "exec")
    tab.press("Enter", 13, 2)
    tab.wait("document.querySelectorAll('#replies table').length === 2")
    assert "Confidence" in tab.text("#reply-second")
    assert tab.text("#reply-second tbody td") == "name"
    assert tab.problems == []
    _see(tab, "answers")


@needs_browser
@pytest.mark.usefixtures("worker")
def test_the_problems_of_a_file_are_shown_by_line(signed_in: Tab, tmp_path: Path) -> None:
    data = tmp_path / "bad.jsonl"
    data.write_bytes(rows(3) + b'{"messages": "' + HOSTILE.encode() + b'"}\n')
    signed_in.click("#new-job summary")
    signed_in.choose_file("#training", data)
    signed_in.click("#start-job")
    signed_in.wait("document.querySelector('#job-status').innerText === 'failed'")
    assert "bad.jsonl:4" in signed_in.text("#job-error")
    _see(signed_in, "failed")
    assert signed_in.problems == []
