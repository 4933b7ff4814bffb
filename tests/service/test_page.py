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
from tests.service.chat.chat_server import ChatServer
from tests.service.conftest import Running, Trained
from tests.service.serving import rows, serving, wait_for

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
    models = {"bases": {"tiny": "none"}, "embeddings": {"words": "none"}}
    settings = ServiceSettings(folder=tmp_path / "service", **models, workers=False)
    with serving(settings) as base:
        tab.open(f"{base}/#/models")
        tab.wait("document.querySelectorAll('#model-rows tr').length === 2", 30)
        assert tab.text("#model-rows td") == "tiny"
        assert tab.js("document.querySelectorAll('#model-rows a').length") == 1, "embeddings are no answers"
        tab.click("#model-rows a")
        tab.wait("document.querySelector('#first').options.length === 1", 30)
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
    tab.click("#check-files")
    tab.wait("!document.querySelector('#checked').hidden")
    assert tab.text("#check-report").count("lines are good") == 2
    assert "12 of 12 lines are good" in tab.text("#check-report")
    assert data.name in tab.text("#check-report")
    _see(tab, "checked")
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
def test_the_problems_of_a_file_are_shown_by_line_before_a_job_is_made(
    tab: Tab, service: Running, tmp_path: Path
) -> None:
    client, data = service.client(), tmp_path / "bad.jsonl"
    _sign_in(tab, service, client.api_key)
    data.write_bytes(rows(3) + b'{"messages": "' + HOSTILE.encode() + b'"}\n')
    tab.click("#new-job summary")
    tab.choose_file("#training", data)
    tab.wait("document.querySelector('#base').value !== ''")
    tab.click("#check-files")
    tab.wait("!document.querySelector('#checked').hidden")
    assert "line 4" in tab.text(".found")
    assert tab.js("document.querySelector('#start-job').disabled")
    _see(tab, "problems")
    (file,) = client.files.list()
    tab.click("#discard-files")
    wait_for(lambda: not list(client.files.list()))
    file = client.files.create(file=("bad.jsonl", data.read_bytes()), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(model="tiny", training_file=file.id)
    tab.open(f"{service.base}/#/jobs/{job.id}")
    tab.wait("document.querySelector('#job-status').innerText === 'failed'")
    assert "bad.jsonl:4" in tab.text("#job-error")
    _see(tab, "failed")
    assert tab.problems == []


@pytest.fixture
def open_server(tmp_path: Path) -> Iterator[ChatServer]:
    """A server without keys and workers, which has a tuned model."""
    server = ChatServer(tmp_path / "service", {"tiny": tmp_path / "none"})
    (tmp_path / "adapter").mkdir()
    server.add("ft:tiny:local:films:1", "tiny", tmp_path / "adapter")
    with server.running():
        yield server


@needs_browser
@pytest.mark.parametrize("way", ["mouse", "keyboard"])
def test_a_job_is_paused_resumed_and_cancelled_and_a_model_deleted(
    tab: Tab, open_server: ChatServer, way: str
) -> None:
    client = open_server.client()
    file = client.files.create(file=("a.jsonl", rows()), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(model="tiny", training_file=file.id, suffix="films")

    def use(selector: str) -> None:
        if way == "mouse":
            tab.click(selector)
        else:
            tab.walk_to(selector)
            tab.press("Enter", 13)

    tab.problems.clear()
    tab.resize(390 if way == "mouse" else 1200, is_dark=way == "mouse")
    tab.open(f"{open_server.url.removesuffix('/v1')}/")
    tab.wait("document.querySelectorAll('#job-rows a').length === 2")
    use("#job-rows a")
    for action, status in (("pause", "paused"), ("resume", "queued")):
        use(f"#job-{action}")
        tab.wait(f"document.querySelector('#job-status').innerText === '{status}'")
        assert client.fine_tuning.jobs.retrieve(job.id).status == status
    _see(tab, f"queued-{way}")
    tab.questions.clear()
    tab.agrees = False
    use("#job-cancel")
    assert client.fine_tuning.jobs.retrieve(job.id).status == "queued", "the question was answered with no"
    tab.agrees = True
    use("#job-cancel")
    tab.wait("document.querySelector('#job-status').innerText === 'cancelled'")
    assert tab.questions == ["Cancel this job? It cannot be resumed."] * 2
    assert tab.js("document.querySelector('#told').textContent") == "The job is cancelled."
    use("#views a[href='#/models']")
    use("#model-rows button")
    tab.wait("document.querySelectorAll('#model-rows tr').length === 1")
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert tab.problems == []


@needs_browser
def test_keys_are_made_and_revoked_and_the_first_one_closes_the_page(
    tab: Tab, open_server: ChatServer
) -> None:
    address = open_server.url.removesuffix("/v1")
    tab.resize(1200)
    tab.open(f"{address}/")
    tab.js("sessionStorage.clear()")
    tab.problems.clear()
    tab.click("#link-keys")
    tab.wait("!document.querySelector('#no-keys').hidden")
    tab.click("#new-key summary")
    tab.write("#key-name", f"root {HOSTILE}")
    tab.click("[name=scope][value=admin]")
    tab.click("#make-key")
    tab.wait("!document.querySelector('#made-key').hidden")
    secret = tab.text("#made-secret")
    _see(tab, "made-key")
    tab.click("#hide-key")
    tab.wait("!document.querySelector('#view-sign-in').hidden")
    assert secret not in tab.js("document.documentElement.outerHTML")
    tab.write("#key", secret)
    tab.press("Enter", 13)
    tab.walk_to("#link-keys")
    tab.press("Enter", 13)
    tab.wait("document.querySelectorAll('#key-rows tr').length === 1")
    tab.walk_to("#new-key summary")
    tab.press("Enter", 13)
    tab.write("#key-name", "reader")
    for scope in ("files", "fine_tuning"):
        tab.walk_to(f"[name=scope][value={scope}]")
        tab.press(" ", 32)
    tab.write("#key-mib", "10")
    tab.press("Enter", 13)
    tab.wait("document.querySelectorAll('#key-rows tr').length === 2")
    reader = tab.text("#made-secret")
    _see(tab, "keys")
    asked = {"authorization": f"Bearer {reader}"}
    key = httpx.get(f"{address}/v1/keys/current", headers=asked).json()
    assert (key["scopes"], key["max_stored_bytes"]) == (["chat"], 10 << 20)
    tab.walk_to("#key-rows button")
    tab.press("Enter", 13)
    tab.wait("document.querySelectorAll('#key-rows .badge').length === 1")
    assert httpx.get(f"{address}/v1/models", headers=asked).status_code == 401
    assert tab.problems == []


@needs_browser
def test_the_scorecard_of_a_finished_job_is_made_and_shown(
    tab: Tab, service: Running, trained: Trained
) -> None:
    _sign_in(tab, service, trained.client.api_key)
    assert tab.js("document.querySelector('#link-keys').hidden"), "the key has no scope of keys"
    tab.open(f"{service.base}/#/jobs/{trained.job.id}")
    tab.click("#job-scorecard")
    tab.wait("document.querySelector('#scorecard-state').innerText !== ''")
    if tab.js("!document.querySelector('#make-scorecard').hidden"):  # no other test has made it
        tab.click("#make-scorecard")
    tab.wait("document.querySelector('#scorecard-state').className !== ''")
    assert tab.js("document.querySelector('#scorecard-state').className") == "verdict", tab.text(
        "#scorecard-state"
    )
    assert "2 held-out rows" in tab.text("#scorecard-figures")
    assert trained.job.fine_tuned_model in tab.text("#scorecard-figures thead")
    _see(tab, "scorecard")
    assert tab.problems == []
