"""What the page tells of what is not there, of what failed and of what cannot be sent."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from sqlalchemy import update

from llama_index_finetune_structured.service.database import jobs
from llama_index_finetune_structured.service.job_rows import add_event, add_held_out_loss
from tests.service.browser import CHROMIUM, Tab, browser
from tests.service.chat.chat_server import ChatServer
from tests.service.serving import rows

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
DELETED, KEPT = "ft:tiny:local:deleted:1", "ft:tiny:local:kept:2"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChatServer]:
    """A server without keys and workers: a job whose model was deleted, and one whose model is there."""
    folder = tmp_path_factory.mktemp("messages")
    server = ChatServer(folder / "service", {"tiny": folder / "none"})
    (folder / "adapter").mkdir()
    for name in (DELETED, KEPT):
        server.add(name, "tiny", folder / "adapter")
    with server.app.state.database.write() as connection:
        connection.execute(update(jobs).values(validation_file="file-2"))
    with server.running():
        server.client().models.delete(DELETED)
        yield server


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with browser(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture
def tab(window: Tab, server: ChatServer) -> Tab:
    """The page, loaded anew."""
    window.resize(1200)
    window.open("about:blank")
    window.open(f"{server.url.removesuffix('/v1')}/#/models")
    window.wait("document.querySelectorAll('#model-rows tr').length === 2", 30)
    window.problems.clear()
    return window


IS_SEEN = """(({top, bottom, height}) => height > 0 && top >= 0 && bottom <= innerHeight)(
  document.querySelector('#problem').getBoundingClientRect())"""


def _go(tab: Tab, address: str) -> None:
    tab.js(f"location.hash = {json.dumps(address)}")


def _job_of(server: ChatServer, model: str) -> str:
    jobs = server.client().fine_tuning.jobs.list()
    return next(job.id for job in jobs if job.fine_tuned_model == model)


def test_a_job_offers_its_model_alone_while_it_is_there(tab: Tab, server: ChatServer) -> None:
    _go(tab, f"#/jobs/{_job_of(server, KEPT)}")
    tab.wait("document.querySelector('#job-try').checkVisibility()", 30)
    assert not tab.js("document.querySelector('#job-gone').checkVisibility()")
    assert tab.js("document.querySelector('#job-scorecard').checkVisibility()")
    _go(tab, f"#/jobs/{_job_of(server, DELETED)}")
    tab.wait("document.querySelector('#job-gone').checkVisibility()", 30)
    assert tab.text("#job-status") == "succeeded"
    for link in ("#job-try", "#job-scorecard"):
        assert not tab.js(f"document.querySelector('{link}').checkVisibility()")
    assert not [each for each in tab.problems if "exceptionDetails" in each]


def test_the_playground_says_that_a_model_of_its_address_is_not_there_and_chooses_none(tab: Tab) -> None:
    _go(tab, f"#/playground/{DELETED}")
    tab.wait("document.querySelector('#problem').checkVisibility()", 30)
    assert f"There is no model {DELETED} to ask" in tab.text("#problem")
    assert tab.js("[first.value, second.value]") == ["", ""]
    assert tab.js("document.querySelector('#copy-python').disabled")
    assert "choose the second model" in tab.text("#code-python")
    _go(tab, f"#/playground/{KEPT}")
    tab.wait(f"document.querySelector('#second').value === {json.dumps(KEPT)}", 30)
    assert tab.text("#problem") == ""
    assert KEPT in tab.text("#code-python")
    assert not tab.js("document.querySelector('#copy-python').disabled")


def _choose_form(tab: Tab, form: str) -> None:
    tab.js(
        f"(f => {{ f.value = '{form}'; f.dispatchEvent(new Event('input', {{bubbles: true}})) }})"
        "(document.querySelector('#form'))"
    )


def _press_at_the_end(tab: Tab, selector: str) -> None:
    """Press a button where the top of the page is out of sight."""
    tab.js("document.body.style.paddingBottom = '1500px'; scrollTo({top: 1e6, behavior: 'instant'})")
    assert tab.js("scrollY") > 500
    tab.js(f"document.querySelector('{selector}').click()")


def test_an_error_is_brought_into_sight_and_told_anew_each_time(tab: Tab) -> None:
    _go(tab, f"#/playground/{KEPT}")
    tab.wait(f"document.querySelector('#second').value === {json.dumps(KEPT)}", 30)
    _press_at_the_end(tab, "#take-row")
    tab.wait(IS_SEEN, 30)
    assert tab.text("#problem") == "The training file of this model was deleted."
    tab.js("window.told_before = document.querySelector('#problem').firstChild; 0")
    _press_at_the_end(tab, "#take-row")
    tab.wait("document.querySelector('#problem').firstChild !== told_before", 30)
    tab.wait(IS_SEEN, 30)


@pytest.mark.parametrize("is_still", [True, False])
def test_the_page_moves_to_an_error_smoothly_only_for_readers_who_do_not_mind(
    tab: Tab, is_still: bool
) -> None:
    tab.resize(1200, is_still=is_still)
    tab.js("Element.prototype.scrollIntoView = function (how) { window.moved = how.behavior; }; 0")
    tab.js("tell('a problem')")
    assert tab.js("moved") == ("instant" if is_still else "smooth")


def test_an_error_that_nobody_has_caused_moves_no_reader(tab: Tab) -> None:
    tab.resize(1200, is_still=True)
    tab.js("window.fetch = () => Promise.reject(new TypeError())")
    tab.js("document.body.style.paddingBottom = '1500px'; 0")
    _go(tab, "#/jobs")
    tab.wait("document.querySelector('#problem').checkVisibility()", 30)
    tab.js("tell(''); scrollTo({top: 700, behavior: 'instant'})")
    tab.wait("document.querySelector('#problem').innerText === 'The server does not answer.'", 30)
    assert tab.js("scrollY") >= 700


def test_the_answers_to_an_earlier_question_go_when_the_next_one_cannot_be_sent(tab: Tab) -> None:
    _go(tab, f"#/playground/{KEPT}")
    tab.wait(f"document.querySelector('#second').value === {json.dumps(KEPT)}", 30)
    tab.write("#message", "Film 3")
    tab.click("#ask-both")
    tab.wait("document.querySelectorAll('#replies h2').length === 2", 30)
    tab.wait("document.querySelector('#ask-state').innerText === ''", 30)
    _choose_form(tab, "json_schema")
    tab.js("document.querySelector('#schema').value = '{'; 0")
    _press_at_the_end(tab, "#ask-both")
    tab.wait(IS_SEEN, 30)
    assert "The schema is no JSON" in tab.text("#problem")
    assert not tab.js("[...document.querySelectorAll('.answer')].some(e => e.checkVisibility())")


ASKED = "performance.getEntriesByType('resource').filter(e => e.name.includes('ftjob-nope')).length"


@pytest.mark.parametrize("more", ["", "/scorecard"])
def test_of_an_unknown_job_it_is_said_that_there_is_none_and_nothing_else_and_it_is_asked_once(
    tab: Tab, server: ChatServer, more: str
) -> None:
    _go(tab, f"#/jobs/{_job_of(server, KEPT)}")
    tab.wait("document.querySelector('#job-status').innerText === 'succeeded'", 30)
    _go(tab, f"#/jobs/ftjob-nope{more}")
    tab.wait("document.querySelector('#problem').checkVisibility()", 30)
    assert "There is no such job" in tab.text("#problem")
    shown = "[...document.querySelectorAll('h2, .badge, .actions *, #job-known')].filter(e => e.checkVisibility())"
    assert tab.js(f"{shown}.map(e => e.outerHTML)") == []
    asked = tab.js(ASKED)
    assert asked > 0
    tab.js("new Promise(done => setTimeout(done, 2 * POLL_MS))")
    assert tab.js(ASKED) == asked


def test_a_job_that_ended_before_its_first_step_does_not_promise_one(tab: Tab, server: ChatServer) -> None:
    client = server.client()
    file = client.files.create(file=("a.jsonl", rows()), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(model="tiny", training_file=file.id)
    _go(tab, f"#/jobs/{job.id}")
    tab.wait("document.querySelector('#job-chart').innerText === 'No step is finished yet.'", 30)
    client.fine_tuning.jobs.cancel(job.id)
    tab.wait("document.querySelector('#job-chart').innerText.startsWith('The job ended before')", 30)


def test_a_held_out_loss_that_is_measured_after_its_step_was_shown_is_drawn(
    tab: Tab, server: ChatServer
) -> None:
    client = server.client()
    file = client.files.create(file=("a.jsonl", rows()), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(model="tiny", training_file=file.id)
    database = server.app.state.database
    for step in (1, 2):
        data = {"step": step, "total_steps": 4, "train_loss": 1 / step}
        with database.write() as connection:
            add_event(connection, job.id, f"Step {step}", data=data, step=step)
    _go(tab, f"#/jobs/{job.id}")
    tab.wait(
        "document.querySelectorAll('#job-chart .dot-training').length === 3", 30
    )  # with that of its name
    assert tab.js("document.querySelectorAll('#job-chart .dot-held-out').length") == 0
    with database.write() as connection:
        add_held_out_loss(connection, job.id, 2, 0.25)
    tab.wait("document.querySelectorAll('#job-chart .dot-held-out').length === 2", 30)
    assert "held-out loss 0.25" in tab.js("document.querySelector('.chart').getAttribute('aria-label')")
    assert tab.text("#job-progress") == "step 2 of 4, loss 0.5000, held-out loss 0.2500"
    client.fine_tuning.jobs.cancel(job.id)


def test_files_are_seen_downloaded_and_deleted(tab: Tab, server: ChatServer, tmp_path: Path) -> None:
    client = server.client()
    for file in client.files.list():
        client.files.delete(file.id)
    _go(tab, "#/files")
    tab.wait("document.querySelector('#stored-files').innerText === 'There is no file yet.'", 30)
    job_file = client.files.create(file=("films.jsonl", rows()), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(model="tiny", training_file=job_file.id)
    name = "<img src=x onerror=document.title='taken'>.txt"
    expiry: Any = {"anchor": "created_at", "seconds": 3600}
    client.files.create(file=(name, b"a note"), purpose="user_data", expires_after=expiry)
    tab.click("#link-jobs")
    tab.click("#link-files")
    tab.wait("document.querySelectorAll('#file-rows tr').length === 2", 30)
    note, films = tab.js("[...document.querySelectorAll('#file-rows tr')].map(row => row.innerText)")
    assert name in note
    assert "user_data" in note
    assert f"films.jsonl\n{job_file.id}" in films
    assert f"{len(rows()):,}" in films
    assert "2 files, 1" in tab.text("#stored-files")
    assert "KiB of 64 GiB" in tab.text("#stored-files")
    tab.js(
        "((make) => { URL.createObjectURL = b => { window.saved = b.text(); return make(b); } })(URL.createObjectURL)"
    )
    tab.click("#file-rows tr:last-child button")
    tab.wait("window.saved", 30)
    assert tab.js("saved") == rows().decode()
    tab.agrees = False
    tab.click("#file-rows tr:last-child button:last-child")
    assert len(client.files.list().data) == 2, "the question was answered with no"
    tab.agrees = True
    tab.click("#file-rows tr:last-child button:last-child")
    tab.wait("document.querySelectorAll('#file-rows tr').length === 1", 30)
    assert ["Delete films.jsonl? Jobs that were made" in each for each in tab.questions[-2:]] == [True, True]
    assert [file.filename for file in client.files.list()] == [name]
    assert client.fine_tuning.jobs.retrieve(job.id).status == "queued"
    _go(tab, f"#/jobs/{job.id}")
    tab.wait("document.querySelector('#job-data').innerText === 'Training: the file was deleted.'", 30)
    client.fine_tuning.jobs.cancel(job.id)
    assert not [each for each in tab.problems if "exceptionDetails" in each]


def test_the_files_of_a_page_are_the_newest_until_older_ones_are_asked_for(
    tab: Tab, server: ChatServer
) -> None:
    client = server.client()
    for number in range(51):
        client.files.create(file=(f"{number}.txt", b"1"), purpose="user_data")
    _go(tab, "#/files")
    tab.wait("document.querySelectorAll('#file-rows tr').length === 50", 30)
    assert tab.text("#file-rows td").startswith("50.txt")
    tab.click("#more-files")
    tab.wait("document.querySelectorAll('#file-rows tr').length > 50", 30)
    assert not tab.js("document.querySelector('#more-files').checkVisibility()")


def test_the_error_of_an_upload_goes_when_another_file_is_chosen(tab: Tab, tmp_path: Path) -> None:
    bad, good = tmp_path / "bad.jsonl", tmp_path / "good.jsonl"
    bad.write_bytes(b"")
    good.write_bytes(rows())
    _go(tab, "#/jobs")
    tab.wait("document.querySelector('#base').value !== ''", 30)
    tab.click("#new-job summary")
    tab.choose_file("#training", bad)
    tab.click("#check-files")
    tab.wait("document.querySelector('#problem').checkVisibility()", 30)
    assert tab.text("#problem").startswith("bad.jsonl: The file is empty")
    tab.choose_file("#training", good)
    tab.wait("!document.querySelector('#problem').checkVisibility()", 30)


@pytest.mark.parametrize("schema", ["{", "[]", "null"])
def test_there_is_no_client_code_to_copy_while_the_schema_is_not_valid(tab: Tab, schema: str) -> None:
    _go(tab, f"#/playground/{KEPT}")
    tab.wait(f"document.querySelector('#code-curl').innerText.includes({json.dumps(KEPT)})", 30)
    tab.js(f"document.querySelector('#schema').value = {json.dumps(schema)}; 0")
    _choose_form(tab, "json_schema")
    for language in ("python", "curl"):
        assert tab.text(f"#code-{language}").startswith("No code: The schema is no JSON")
        assert tab.js(f"document.querySelector('#copy-{language}').disabled")
    _choose_form(tab, "text")
    for language in ("python", "curl"):
        assert KEPT in tab.text(f"#code-{language}")
        assert not tab.js(f"document.querySelector('#copy-{language}').disabled")


def test_of_a_row_of_several_turns_the_last_alone_is_taken_which_is_said(tab: Tab) -> None:
    _go(tab, f"#/playground/{KEPT}")
    tab.wait(f"document.querySelector('#second').value === {json.dumps(KEPT)}", 30)
    said = [{"role": role, "content": role} for role in ("user", "assistant")]
    for turns, told in ((2, "The row has 2 messages of the user: the last one alone is taken."), (1, "")):
        tab.js(f"takeRow({json.dumps({'messages': said * turns})})")
        assert tab.text("#ask-state") == told
        assert tab.js("document.querySelector('#message').value") == "user"


@pytest.mark.parametrize(
    ("count", "said"),
    [(0, "0 bytes"), (1023, "1,023 bytes"), (1536, "1.5 KiB"), (5 << 20, "5 MiB"), (64 << 30, "64 GiB")],
)
def test_sizes_are_said_in_the_unit_that_fits(tab: Tab, count: int, said: str) -> None:
    assert tab.js(f"size({count})") == said


def test_a_long_name_of_a_model_ends_before_the_arrow_of_its_list(tab: Tab) -> None:
    _go(tab, f"#/playground/{KEPT}")
    tab.wait(f"document.querySelector('#second').value === {json.dumps(KEPT)}", 30)
    style = "(({paddingRight, textOverflow}) => [parseInt(paddingRight), textOverflow])"
    for place in ("first", "second"):
        padding, overflow = tab.js(f"{style}(getComputedStyle({place}))")
        assert padding >= 20
        assert overflow == "ellipsis"
        assert tab.js(f"{place}.offsetWidth === {place}.parentElement.offsetWidth")


def test_the_box_of_a_schema_begins_with_one_that_can_be_sent(tab: Tab) -> None:
    _go(tab, f"#/playground/{KEPT}")
    tab.wait(f"document.querySelector('#second').value === {json.dumps(KEPT)}", 30)
    tab.js("takeRow({ messages: [{ role: 'user', content: 'Film 3' }] })")
    assert tab.js("[message.value, form.value]") == ["Film 3", "text"]
    _choose_form(tab, "json_schema")
    schema = tab.js("asked().response_format.json_schema.schema")
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["required"] == list(schema["properties"])
