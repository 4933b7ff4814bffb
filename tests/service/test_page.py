"""The page: what it sends to a browser, and its use in a real one."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from llama_index_finetune_structured import Scorecard
from llama_index_finetune_structured.service.settings import ServiceSettings
from tests.service.browser import CHROMIUM, Tab, browser
from tests.service.chat.chat_server import ChatServer
from tests.service.conftest import Running, Trained
from tests.service.serving import pairs, rows, serving, wait_for

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
HOSTILE = "<img src=x onerror=document.title='taken'>"
# Visible texts whose contrast with what is behind them is below 4.5, the least that WCAG 2.2 asks for.
FAINT = """(() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  const light = (colour) => { const [r, g, b] = numbers(colour).slice(0, 3).map((c) => linear(c / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const behind = (e) => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
    if ((numbers(c)[3] ?? 1) > 0) return c; } return "rgb(255, 255, 255)"; };
  const hasText = (e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
  return [...document.querySelectorAll("body *")]
    .filter((e) => e.checkVisibility() && hasText(e) && !e.closest("svg, select, :disabled, .sr, .skip"))
    .map((e) => [e, light(getComputedStyle(e).color), light(behind(e))])
    .filter(([, a, b]) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05) < 4.5).map(([e]) => e.outerHTML);
})()"""


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browser(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture
def signed_in(tab: Tab, service: Running) -> Tab:
    """A tab that has signed in with a new key, by mouse and keyboard."""
    _sign_in(tab, service, service.add_key())
    return tab


def _sign_in(tab: Tab, service: Running, key: str, view: str = "jobs") -> None:
    tab.problems.clear()
    tab.resize(1200)
    tab.open("about:blank")
    tab.open(f"{service.base}/")
    tab.js("sessionStorage.clear()")
    tab.open("about:blank")
    tab.open(f"{service.base}/")
    tab.write("#key", key)
    tab.press("Enter", 13)
    tab.wait(f"!document.querySelector('#view-{view}').hidden", 30)


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
    tab.wait("document.querySelector('#problem').innerText.includes('does not know this API key')", 30)
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
    _train_on_preferences(tab, tmp_path / "pairs.jsonl", name)
    assert tab.js("document.title") == "finetune-structured"
    assert tab.js("document.querySelectorAll('main img').length") == 0
    assert tab.problems == []


def _train_on_preferences(tab: Tab, data: Path, model: str) -> None:
    """Go on from a tuned model with preferences, by the keyboard alone."""
    data.write_bytes(pairs(4))
    tab.walk_to("#link-jobs")
    tab.press("Enter", 13)
    tab.wait("document.querySelectorAll('#base option').length === 2", 30)
    tab.choose_file("#training", data)
    tab.walk_to("#base")
    tab.press("ArrowDown", 40)
    assert tab.js("document.querySelector('#base').value") == model
    tab.walk_to("#check-files")
    tab.press("Enter", 13)
    tab.wait("!document.querySelector('#checked').hidden")
    assert "the method must be 'dpo'" in tab.text("#check-report")
    assert tab.js("document.querySelector('#start-job').disabled")
    assert tab.js("document.querySelector('#beta-label').hidden")
    _see(tab, "other-method")
    tab.walk_to("#other-method")
    tab.press("Enter", 13)
    tab.wait("document.querySelector('#check-report').innerText.includes('4 of 4 lines are good')")
    for field, value in (("epochs", "1"), ("batch-size", "2"), ("multiplier", "0.5"), ("beta", "0.25")):
        tab.walk_to(f"#{field}")
        tab.write(f"#{field}", value)
    _see(tab, "preferences")
    tab.walk_to("#start-job")
    tab.press("Enter", 13)
    tab.wait("!document.querySelector('#view-job').hidden", 30)
    tab.wait("document.querySelector('#job-status').innerText === 'succeeded'")
    facts = "[...document.querySelectorAll('#job-facts dt')].map(e => [e.innerText, e.nextSibling.innerText])"
    told = dict(tab.js(facts))
    asked = {"Base model": model, "Method": "dpo", "Epochs": "1", "Batch size": "2", "Beta": "0.25"}
    assert told | asked | {"Learning rate multiplier": "0.5"} == told
    _see(tab, "preferences-job")
    tab.walk_to("#job-try")
    tab.press("Enter", 13)
    tab.walk_to("#take-row")
    tab.press("Enter", 13)
    tab.wait("document.querySelector('#message').value.startsWith('Film')", 30)


def _see(tab: Tab, view: str) -> None:
    """Nothing is wider than the window, at the width of a phone and of a desk, and all can be read in either scheme.

    Pictures are saved where they are asked for.
    """
    for width, is_dark in ((390, True), (1200, False)):
        tab.resize(width, is_dark=is_dark)
        assert tab.js("document.documentElement.scrollWidth") <= width, view
        wide = "[...document.querySelectorAll('main *')].filter(e => e.checkVisibility()"
        wide += " && !e.closest('.scroll, pre, .sr, svg')"
        wide += " && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML)"
        assert tab.js(wide) == [], view
        assert tab.js(FAINT) == [], view
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
    assert json.loads(tab.js("document.querySelector('#schema').value"))["type"] == "object", "an example"
    tab.js("document.querySelector('#schema').value = ''; 0")
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
    data.write_bytes(rows())
    tab.walk_to("#method")
    tab.press("ArrowDown", 40)
    tab.choose_file("#training", data)
    tab.click("#check-files")
    tab.wait(
        "document.querySelector('#check-report').innerText.includes(\"the method must be 'supervised'\")"
    )
    data.write_bytes(rows(3) + b'{"messages": "' + HOSTILE.encode() + b'"}\n')
    tab.click("#link-files")
    tab.wait("document.querySelectorAll('#file-rows tr').length === 1", 30)
    tab.click("#link-jobs")  # a look at another view discards nothing
    tab.click("#discard-files")
    wait_for(lambda: not list(client.files.list()))
    file = client.files.create(file=("bad.jsonl", data.read_bytes()), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(model="tiny", training_file=file.id)
    tab.open(f"{service.base}/#/jobs/{job.id}")
    tab.wait("document.querySelector('#job-status').innerText === 'failed'")
    assert "bad.jsonl:4" in tab.text("#job-error")
    _see(tab, "failed")
    tab.click("#view-job a[href='#/jobs']")
    tab.wait("document.querySelectorAll('#job-rows tr').length === 1", 30)
    tab.wait("document.querySelector('.why').innerText.startsWith('bad.jsonl:4: messages')", 30)
    _see(tab, "failed-jobs")
    for width in (390, 1200):
        tab.resize(width)
        assert tab.js("document.querySelector('.why').getClientRects()[0].height") < 30, "more than a line"
    assert tab.problems == []


@needs_browser
def test_a_key_without_the_scope_of_a_view_is_told_so_and_sees_what_it_may(
    tab: Tab, service: Running
) -> None:
    _sign_in(tab, service, service.add_key(scopes=["chat"]), "playground")
    assert tab.text("#key-note").startswith(
        "This key may be used for chat alone: jobs need the scope fine-tuning"
    )
    assert tab.text("#views").split() == ["Models", "Playground"]
    assert tab.js("document.querySelector('#take-row').hidden"), "it reads no files"
    _see(tab, "chat-key")
    for view in ("jobs", "jobs/ftjob-1", "jobs/ftjob-1/scorecard", "keys"):
        tab.js(f"location.hash = '#/{view}'")
        what = {"keys": "The list of keys needs", "jobs/ftjob-1/scorecard": "Scorecards need"}.get(
            view, "Jobs need"
        )
        tab.wait(f"document.querySelector('#refused-why').innerText.startsWith('{what} a key with')")
        assert "This key may be used for chat." in tab.text("#view-refused")
        assert tab.text("#problem") == ""
    _see(tab, "refused")
    tab.walk_to("#other-key")
    tab.press("Enter", 13)
    tab.wait("document.activeElement?.id === 'key'", 30)
    _sign_in(tab, service, service.add_key(scopes=["fine_tuning"]))
    tab.click("#new-job summary")
    assert "needs a key with the scope files" in tab.text("#new-job")
    assert tab.js("document.querySelector('#start').hidden")
    _see(tab, "fine-tuning-key")
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
    assert tab.js("document.querySelector('[name=scope][value=admin]').checked"), (
        "else none can be revoked here"
    )
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
    assert tab.js("get('/models').then(page => page.data.at(-1).id)") == "ft:tiny:local:films:1", (
        "made without keys"
    )
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
    tab: Tab, service: Running, trained: Trained, tmp_path: Path
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
    file = service.settings.runs_folder / trained.job.id / "scorecard.json"
    card, name = file.read_bytes(), trained.job.fine_tuned_model
    long_name = f"ft:tiny:local:{'m' * 64}:0123456789ab"
    file.write_bytes(card.replace(name.encode(), long_name.encode()))
    try:
        tab.open("about:blank")
        tab.open(f"{service.base}/#/jobs/{trained.job.id}/scorecard")
        tab.wait("document.querySelector('#scorecard-figures').innerText.includes('mmm')")
        _see(tab, "scorecard-long-name")
        tab.resize(390)
        wide = "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth).length"
        assert tab.js(wide) == 0, "a table that is wider than a phone"
        report = Scorecard.from_json(file).to_html(tmp_path / "report.html", title=long_name)
        tab.open(report.as_uri())
        _see(tab, "report-long-name")
    finally:
        file.write_bytes(card)
    assert tab.problems == []
