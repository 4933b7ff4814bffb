"""What is printed shows every figure at any width, and no control character of a name reaches the terminal."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console

from llama_index_finetune_structured import Scorecard, compare_texts
from llama_index_finetune_structured.errors import ConfigurationError
from llama_index_finetune_structured.evaluation.export_parity import FormParity, Parity
from llama_index_finetune_structured.evaluation.learning_curves import LearningCurve
from llama_index_finetune_structured.evaluation.report.charts import learning_picture
from llama_index_finetune_structured.evaluation.report.terminal import FittedTable
from llama_index_finetune_structured.printable import printable

from .systems import ScriptedLLM, example, quiet

HOSTILE = "[/x][bold]\x1b[2J\x1b]0;title\x07\r\u202e\x9b31m[link=http://x]"
WIDTHS = [20, 40, 60, 80, 120, 1000]


def many_fields(systems: list[str], fields: int = 12) -> Scorecard:
    """A scorecard in which each figure of a field is another number: field n is right in n of ``fields`` rows."""
    names = [f"{'unit_price_of_' * (n % 3)}field_{n}" for n in range(fields)]
    gold = dict.fromkeys(names, "right")
    schema = {
        "type": "object",
        "properties": {name: {"type": "string"} for name in names},
        "required": names,
    }
    data = [example(f"row {at}", gold, answer_schema=schema) for at in range(fields)]

    def system(row: Any) -> dict[str, str]:
        at = int(row.query.split()[1])
        return {name: "right" if at < n else "wrong" for n, name in enumerate(names)}

    return quiet(dict.fromkeys(systems, system), data)


def printed(table: Any, width: int) -> str:
    console = Console(width=width, force_terminal=False)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def letters(text: str) -> str:
    return re.sub(r"[^\w%.]", "", text)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(
    "systems", [["base"], ["base", "tuned", "teacher"], [f"system-{n}" for n in range(9)]]
)
def test_every_figure_is_printed_at_every_width(systems: list[str], width: int) -> None:
    card = many_fields(systems)
    text = printed(card.table(), width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for n in range(12):
        share = f"{n / 12:.0%}"
        assert text.count(share) >= len(systems), (share, text)
    together = letters(text)
    if width >= 60:  # narrower, a broken name is interleaved with the cells beside it
        assert all(f"field_{n}" in together for n in range(12))
        assert all(letters(name) in together for name in systems)


def test_a_wide_terminal_gets_a_line_per_system_and_a_narrow_one_a_line_per_figure() -> None:
    card = many_fields(["base", "tuned"])
    wide, narrow = printed(card.table(), 1000).splitlines(), printed(card.table(), 80).splitlines()
    assert sum(line.split()[:1] in (["base"], ["tuned"]) for line in wide) == 2
    assert sum("field_" in line for line in wide) == 1
    assert sum("field_" in line for line in narrow) == 12
    assert all(re.search(r"\d+%\s+\d+%", line) for line in narrow if "field_" in line)


@pytest.mark.parametrize("width", WIDTHS)
def test_any_table_of_any_text_fits_and_holds_every_cell(width: int) -> None:
    rows = tuple(tuple(f"c{row}x{column}" for column in range(30)) for row in range(5))
    text = printed(FittedTable("title", tuple(f"h{n}" for n in range(30)), rows), width)
    assert max(map(len, text.splitlines())) <= width
    cells = set(re.findall(r"[ch]\d+(?:x\d+)?", text))
    assert cells >= {cell for row in rows for cell in row} | {f"h{n}" for n in range(30)}


def test_output_into_a_pipe_has_every_figure(tmp_path: Path) -> None:
    path = many_fields(["base", "tuned"]).to_json(tmp_path / "scorecard.json")
    for code in (
        f"from llama_index_finetune_structured import Scorecard; Scorecard.from_json({str(path)!r}).print()",
        f"from llama_index_finetune_structured.cli import app; app(['report', {str(path)!r}])",
    ):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert all(f"field_{n}" in done.stdout and f"{n / 12:.0%}" in done.stdout for n in range(12))


def _hostile_card() -> Scorecard:
    gold = {HOSTILE: HOSTILE}
    schema = {"type": "object", "properties": {HOSTILE: {"type": "string"}}}
    data = [example(f"{HOSTILE} {n}", gold, answer_schema=schema, document_id=HOSTILE) for n in range(2)]

    def broken(_: Any) -> Any:
        raise ConnectionError(HOSTILE)

    return quiet(
        {HOSTILE: lambda row: row.answer_object(), f"{HOSTILE} b": broken, "teacher": lambda _: HOSTILE}, data
    )


def _parity(card: Scorecard) -> Parity:
    form = FormParity(valid=1, agreement=0.1, identical=0, seconds_per_answer=1, n=2)
    return Parity(adapter_valid=1, forms={HOSTILE: form}, min_agreement=0.9, max_valid_loss=0, answers=card)


def _curve(card: Scorecard) -> LearningCurve:
    systems = {f"{n} rows": score for n, score in zip((1, 2), card.systems.values(), strict=False)}
    rows = [
        row.model_copy(update={"answers": dict(zip(systems, row.answers.values(), strict=False))})
        for row in card.rows
    ]
    return LearningCurve(
        sizes=(1, 2),
        metric=f"fields.{HOSTILE}",
        scorecard=card.model_copy(update={"systems": systems, "rows": tuple(rows), "differences": ()}),
    )


PRINTED: dict[str, Callable[[], Any]] = {
    "Scorecard": _hostile_card,
    "Parity": lambda: _parity(_hostile_card()),
    "LearningCurve": lambda: _curve(_hostile_card()),
    "TextScorecard": lambda: compare_texts(
        {HOSTILE: lambda _: "", "b": lambda _: HOSTILE},
        [example(HOSTILE, {"a": 1})],
        judge=ScriptedLLM(script={"": OSError(HOSTILE)}),
        show_progress=False,
    ),
}


@pytest.mark.parametrize("kind", PRINTED)
def test_no_name_is_markup_and_no_control_character_reaches_the_terminal(
    kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    result = PRINTED[kind]()
    capsys.readouterr()
    result.print()
    shown = capsys.readouterr().out
    assert shown == printable(shown)
    assert "[/x][bold]" in re.sub(r"\s", "", shown)


@pytest.mark.parametrize("kind", PRINTED)
def test_printing_the_object_itself_is_short(kind: str) -> None:
    result = PRINTED[kind]()
    assert len(repr(result)) < 400
    assert len(str(result)) < 1500
    assert type(result).__name__ in repr(result)
    assert [repr(result), str(result)] == [printable(repr(result)), printable(str(result))]
    assert "\n" not in repr(result)


@pytest.mark.parametrize("kind", PRINTED)
def test_no_sentence_to_be_printed_has_control_characters(kind: str) -> None:
    result = PRINTED[kind]()
    sentences = [*getattr(result, "problems", list)(), getattr(result, "verdict", str)()]
    assert any("[/x][bold]" in sentence for sentence in sentences) or kind == "LearningCurve"
    assert sentences == [printable(sentence) for sentence in sentences]
    if kind == "Scorecard":
        for call in (lambda: result.difference("x", "y"), lambda: result.difference(HOSTILE, HOSTILE, "x")):
            with pytest.raises(ConfigurationError) as refused:
                call()
            assert str(refused.value) == printable(str(refused.value))


def test_a_scorecard_with_half_a_surrogate_pair_is_read_again(tmp_path: Path) -> None:
    card = quiet({"it\ud800": lambda _: {"function": "\udfffx"}}, [example("\ud800?", {"function": "f"})])
    again = Scorecard.from_json(card.to_json(tmp_path / "s.json"))
    (answer,) = again.rows[0].answers.values()
    assert answer.text == '{"function":"?x"}'
    assert len((tmp_path / "s.json").read_text().splitlines()) < 20


def test_pictures_with_any_name_are_xml(tmp_path: Path) -> None:
    card = _hostile_card()
    ElementTree.parse(card.to_svg(tmp_path / "a.svg"))
    ElementTree.parse(_curve(card).to_svg(tmp_path / "b.svg"))
    ElementTree.fromstring(learning_picture(_curve(card).points, "\x00\x1b\ud800"))
    page = card.to_html(tmp_path / "r.html", title=HOSTILE).read_text()
    assert page == printable(page)


def test_printable_keeps_text_of_every_language() -> None:
    kept = "Ärzte 東京 עברית é \U0001f600\t\n"
    assert printable(kept) == kept
    assert printable("a\x1b[2J\x07\x9b\u202e\ud800") == r"a\x1b[2J\x07\x9b\u202e\ud800"
