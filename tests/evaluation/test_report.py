"""The page, the picture and the table: self-contained, escaped, the worst cases first."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from llama_index_finetune_structured import Example, Prices, Scorecard, compare
from llama_index_finetune_structured.errors import ConfigurationError
from llama_index_finetune_structured.example import Usage

from .systems import card, example

HOSTILE = "<script>alert('x')</script> & \"quoted\" </style>"


class Tags(HTMLParser):
    """Collects tags, attributes and whether every element was closed in order."""

    VOID = frozenset({"meta", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def scorecard() -> Scorecard:
    golds = [card(f"f{n}", parameters=[{"name": HOSTILE, "type": "int"}], returns=HOSTILE) for n in range(14)]
    data = [
        example(f"{HOSTILE} call {n}?", gold, document_id=f"doc{HOSTILE}{n}") for n, gold in enumerate(golds)
    ]

    def tuned(row: Example) -> object:
        answer = row.answer_object()
        if "call 5?" in str(row.query):
            return {"function": HOSTILE, "parameters": [{"name": "no", "type": HOSTILE}], "returns": None}
        if "call 7?" in str(row.query):
            answer["parameters"] = []
        return answer

    systems = {
        f"base {HOSTILE}": lambda _: f"no json {HOSTILE}",
        "tuned": tuned,
        "teacher": lambda row: row.answer_object(),
    }
    return compare(systems, data, show_progress=False, notes={HOSTILE: HOSTILE})


LOG = [{"step": step, "loss": 2.0 / (step + 1)} for step in range(5)] + [
    {"step": 4, "loss": 0.4, "validation_loss": 0.5}
]


def _page(scorecard: Scorecard, tmp_path: Path) -> str:
    path = scorecard.to_html(tmp_path / "r.html", title=HOSTILE, training_log=LOG)
    return path.read_text(encoding="utf-8")


def test_page_is_well_formed_and_escapes_everything_that_came_from_data(
    scorecard: Scorecard, tmp_path: Path
) -> None:
    page = _page(scorecard, tmp_path)
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert "script" not in tags.tags
    assert page.count("<style>") == page.count("</style>")
    assert "&lt;script&gt;alert" in page


def test_page_asks_for_nothing_from_elsewhere(scorecard: Scorecard, tmp_path: Path) -> None:
    page = _page(scorecard, tmp_path)
    tags = Tags()
    tags.feed(page)
    assert not {"link", "img", "iframe", "script", "object"} & set(tags.tags)
    assert not {"src", "href", "srcset"} & {name for name, _ in tags.attributes}
    assert not re.search(r"@import|url\(", page)
    policies = [value for name, value in tags.attributes if name == "content" and "-src" in str(value)]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_page_shows_the_ten_worst_answers_worst_first(scorecard: Scorecard, tmp_path: Path) -> None:
    page = _page(scorecard, tmp_path)
    cases = re.findall(r"<article class='case'><h3>\d+\. (.*?)</h3>", page)
    assert len(cases) == 10
    assert "call 5?" in cases[0]
    assert "call 7?" in cases[1]


def test_pictures_and_differences_are_readable_without_sight_or_colour(
    scorecard: Scorecard, tmp_path: Path
) -> None:
    page = _page(scorecard, tmp_path)
    svgs = re.findall(r"<svg.*?</svg>", page, re.S)
    assert len(svgs) == 2
    for svg in svgs:
        assert "role='img'" in svg
        assert re.search(r"<title>.*\d.*</title>", svg)
    for spoken in ("right: ", "differs: ", "missing: "):
        assert spoken in page
    assert "lang='en'" in page
    assert "prefers-color-scheme:dark" in page
    assert "name='viewport'" in page


def test_picture_alone_is_an_xml_file(scorecard: Scorecard, tmp_path: Path) -> None:
    root = ElementTree.parse(scorecard.to_svg(tmp_path / "picture.svg")).getroot()
    assert root.tag.endswith("svg")
    texts = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert {"schema valid", "exact match", "parameters F1", "100%", "0%"} <= set(texts)


def test_table_has_a_line_per_system(scorecard: Scorecard) -> None:
    console = Console(width=200, record=True, file=None)
    with console.capture() as captured:
        console.print(scorecard.table())
    lines = captured.get().splitlines()
    assert sum("teacher" in line for line in lines) == 1
    assert "parameters F1" in captured.get()


def test_page_is_written_atomically(scorecard: Scorecard, tmp_path: Path) -> None:
    path = tmp_path / "r.html"
    path.write_text("the old page")
    with pytest.raises(TypeError):
        scorecard.to_html(path, training_log=[{"step": 1, "loss": object()}, {"step": 2, "loss": 1}])
    assert path.read_text() == "the old page"
    assert list(tmp_path.iterdir()) == [path]


def _split_scorecard() -> Scorecard:
    """Training rows all right, held-out rows half wrong; the long answers are wrong."""
    data = []
    for at in range(40):
        gold = card(f"f{at}", parameters=[{"name": f"p{n}", "type": "int"} for n in range(at % 4)])
        split = "train" if at < 20 else "validation"
        usage = Usage(prompt_tokens=1000, completion_tokens=100)
        data.append(example(f"call {at}!", gold, split=split, document_id=f"doc {at // 2}", usage=usage))

    def memorised(row: Example) -> object:
        answer = row.answer_object()
        return answer if row.split == "train" or len(answer["parameters"]) < 2 else "no idea"

    systems = {"base": lambda _: "", "tuned": memorised, "teacher": lambda row: row.answer_object()}
    return compare(systems, data, show_progress=False, notes={"base model": "tiny <b>"})


def test_a_memorised_training_set_is_flagged() -> None:
    gaps = _split_scorecard().gaps()
    assert gaps["tuned"].is_flagged
    assert (gaps["tuned"].train, gaps["tuned"].held_out) == (1.0, 0.5)
    assert gaps["tuned"].low < 0.5 < gaps["tuned"].high
    assert not gaps["teacher"].is_flagged
    assert not gaps["base"].is_flagged


def test_gap_that_may_be_chance_is_not_flagged() -> None:
    data = [
        example(f"call {at}!", card(f"f{at}"), split="train" if at < 10 else "validation") for at in range(20)
    ]
    systems = {"it": lambda row: "" if row.query == "call 15!" else row.answer_object()}
    gap = compare(systems, data, show_progress=False).gaps()["it"]
    assert gap.gap == pytest.approx(0.1)
    assert gap.low < 0
    assert not gap.is_flagged


def test_slices_by_length_document_and_anything_else() -> None:
    scorecard = _split_scorecard()
    lengths = [part["tuned"].field_score for part in scorecard.slices("answer_length").values()]
    assert len(lengths) == 3
    assert lengths[0] == 1 > lengths[-1]
    documents = scorecard.slices("document")
    assert len(documents) == 20
    assert {part["tuned"].n for part in documents.values()} == {2}
    own = scorecard.slices(lambda row: "even" if int(row.question[5:-1]) % 2 == 0 else "odd")
    assert sorted(own) == ["even", "odd"]
    assert sum(part["base"].n for part in own.values()) == 40
    assert scorecard.slices("split")["validation"]["tuned"].schema_valid == 0.5


def test_break_even_counts_training_and_the_answers_bought_for_it() -> None:
    scorecard = _split_scorecard()
    prices = Prices(input_per_million=10.0, output_per_million=20.0, training_cost=5.0, training_examples=100)
    found = scorecard.break_even("tuned", prices)
    assert found.teacher_per_query == pytest.approx(0.012)
    assert found.upfront == pytest.approx(5 + 1.2)
    assert found.queries == 517  # 6.2 / 0.012, rounded up
    dear = Prices(input_per_million=1.0, output_per_million=1.0, student_per_query=1.0)
    assert scorecard.break_even("tuned", dear).queries is None
    assert "does not pay for itself" in scorecard.break_even("tuned", dear).sentence("tuned")


def test_break_even_without_token_use_says_what_is_missing(scorecard: Scorecard) -> None:
    with pytest.raises(ConfigurationError, match=r"Example\.usage"):
        scorecard.break_even("tuned", Prices(input_per_million=1.0, output_per_million=1.0))


def test_page_shows_gap_cost_slices_and_notes(tmp_path: Path) -> None:
    prices = Prices(input_per_million=10.0, output_per_million=20.0, training_cost=5.0)
    page = _split_scorecard().to_html(tmp_path / "r.html", prices=prices).read_text()
    for text in ("memorised", "has paid for itself after", "up to ", "tiny &lt;b&gt;", "doc 1"):
        assert text in page
    tags = Tags()
    tags.feed(page)
    assert tags.open == []


def test_repeated_item_is_shown_once_with_its_count(tmp_path: Path) -> None:
    wrong = [{"name": "x", "type": "int"}]
    data = [example("How do I call f?", card("f"))]
    found = compare({"it": lambda _: card("f", parameters=wrong * 5)}, data, show_progress=False)
    page = found.to_html(tmp_path / "r.html").read_text()
    assert page.count("name: x, type: int") == 1
    assert "×5" in page
    assert "not in gold: " in page


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
@pytest.mark.parametrize("width", [390, 1200])
def test_page_fits_its_window_in_a_real_browser(scorecard: Scorecard, tmp_path: Path, width: int) -> None:
    """Nothing is wider than the window; the figures of three systems fit, and every table's box can be scrolled."""
    scorecard.to_html(tmp_path / "r.html", training_log=LOG)
    probe = (
        f"<iframe id='f' src='r.html' style='width:{width}px;height:900px;border:0'></iframe><script>"
        "onload=()=>{const d=document.getElementById('f').contentDocument;"
        "const boxes=[...d.querySelectorAll('.scroll')];"
        "const wide=boxes.filter(b=>b.scrollWidth>b.clientWidth+1&&getComputedStyle(b).overflowX!='auto').length;"
        "const cut=[...d.querySelectorAll('td,th')].filter(c=>c.scrollWidth>c.clientWidth+1).length;"
        "const figures=boxes[0].scrollWidth<=boxes[0].clientWidth+1?0:1;"
        "document.title=[d.documentElement.scrollWidth,d.querySelectorAll('article').length,wide,cut,figures]"
        ".join(' ')}</script>"
    )
    (tmp_path / "probe.html").write_text(probe)
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files",
        f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", (tmp_path / "probe.html").as_uri(),
    ]  # fmt: skip
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    found = re.search(r"<title>(\d+) (\d+) (\d+) (\d+) (\d+)</title>", dom)
    assert found is not None, dom[:500]
    page, articles, unreachable, cut, figures = map(int, found.groups())
    assert page <= width
    assert (articles, unreachable, cut, figures) == (10, 0, 0, 0)
