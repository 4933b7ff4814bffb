"""The tagger of words: an answer whose values are not where they used to be in the text is less sure."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_index.core import PromptTemplate
from pydantic import BaseModel, ValidationError

from llama_index_finetune_structured import FinetuneDataset, LoraFinetuneEngine, LoraLLM, LoraSettings
from llama_index_finetune_structured.errors import ConfigurationError
from llama_index_finetune_structured.local.model.adapter import CARD, read_card
from llama_index_finetune_structured.local.schema.bounds import schema_key
from llama_index_finetune_structured.trust import tagger as tagger_module
from llama_index_finetune_structured.trust.answer_trust import (
    LogProbability,
    Trust,
    trust_in_tokens,
)
from llama_index_finetune_structured.trust.calibration import log_odds
from llama_index_finetune_structured.trust.evidence import with_evidence
from llama_index_finetune_structured.trust.lookup import trust_of
from llama_index_finetune_structured.trust.tagger import WordTagger, fitted_tagger
from tests import tiny

ARTISTS = ("Nina", "Miles", "Ella", "Chet", "Etta", "Otis")
ALBUMS = ("Baltimore", "Milestones", "Lullabies", "Embraceable", "Tell Mama", "Soul")
ROWS = [
    (text.format(album=album, artist=artist), {"album": album, "artist": artist})
    for number, artist in enumerate(ARTISTS)
    for text in ("play the album {album} by {artist}", "put {album} on, the one of {artist}, please")
    for album in (ALBUMS[number], ALBUMS[number - 1])
]
KNOWN = LogProbability(total=-0.1, least=-0.1, unmasked=-0.1)


def placed(text: str | None, answer: Any) -> Trust:
    """The trust in an answer with evidence, as if its tokens were known."""
    trust = trust_in_tokens(json.dumps(answer))
    assert trust is not None
    fields = tuple(field.model_copy(update={"presence": KNOWN, "writing": KNOWN}) for field in trust.fields)
    ends = tuple(end.model_copy(update={"ending": KNOWN}) for end in trust.ends)
    known = trust.model_copy(update={"tokens": KNOWN, "fields": fields, "ends": ends})
    return with_evidence(known, [text])


def trained(rows: list[tuple[str, Any]] = ROWS) -> WordTagger | None:
    return fitted_tagger([[text] for text, _ in rows], lambda number: placed(*rows[number]))


def tagged(found: WordTagger, text: str, answer: Any) -> Trust:
    return found.applied(placed(text, answer), [text])


def of(tokens: LogProbability | None) -> float:
    assert tokens is not None
    assert tokens.tagged is not None
    return tokens.tagged


@pytest.fixture(scope="module")
def found() -> WordTagger:
    tagger = trained()
    assert tagger is not None
    return tagger


TEXT = "play the album Kind by Bill"


def test_swapped_values_are_less_sure_than_those_in_their_places(found: WordTagger) -> None:
    right, swapped = ({"album": "Kind", "artist": "Bill"}, {"album": "Bill", "artist": "Kind"})
    assert of(tagged(found, TEXT, right).tokens) > math.log(0.5) > of(tagged(found, TEXT, swapped).tokens)
    fields = zip(tagged(found, TEXT, right).fields, tagged(found, TEXT, swapped).fields, strict=True)
    for one, other in fields:
        assert of(one.writing) > of(other.writing)
        assert of(one.presence) > of(other.presence)


def test_a_value_that_is_left_out_makes_the_end_less_sure(found: WordTagger) -> None:
    whole, part = ({"album": "Kind", "artist": "Bill"}, {"artist": "Bill"})
    ends = [tagged(found, TEXT, answer).ends[0].ending for answer in (whole, part)]
    assert of(ends[0]) > math.log(0.5) > of(ends[1])
    assert of(tagged(found, TEXT, part).tokens) < math.log(0.5)


def test_of_lists_each_end_is_judged_by_its_own_fields() -> None:
    rows = [
        (f"for {name}: one {a}, one {b}", {"name": name, "items": [{"thing": a}, {"thing": b}]})
        for name in ("Ann", "Bob", "Cyd")
        for a in ("ax", "cup", "jar", "pen")
        for b in ("hat", "saw", "mug")
    ]
    tagger = trained(rows)
    assert tagger is not None
    assert set(tagger.labels) == {"", "name", "items[].thing"}
    trust = tagged(tagger, "for Dan: one bow, one rug", {"name": "Dan", "items": [{"thing": "bow"}]})
    ends = {end.path: of(end.ending) for end in trust.ends if end.ending and end.ending.tagged is not None}
    assert ends[("items",)] < math.log(0.5)
    assert ends[()] == pytest.approx(ends[("items",)], abs=0.5)
    trust = tagged(tagger, "for Dan: one bow, one rug", {"items": [{"thing": "bow"}, {"thing": "rug"}]})
    ends = {end.path: of(end.ending) for end in trust.ends if end.ending and end.ending.tagged is not None}
    assert ends[("items",)] > math.log(0.5) > ends[()]


def test_a_word_that_stands_in_a_value_elsewhere_says_nothing(found: WordTagger) -> None:
    answer = {"album": "Kind", "artist": "Bill"}
    assert of(tagged(found, TEXT, answer).tokens) == pytest.approx(
        of(tagged(found, f"{TEXT} , the one of Bill", answer).tokens), abs=1.0
    )


words = st.sampled_from(["play", "Kind", "by", "Bill", ",", "é", "日本", "\ud800", "7", "1.5", "", "\n"])
answers = st.recursive(
    st.none() | st.booleans() | st.integers(0, 9) | st.sampled_from(["Kind", "Bill", "日", "7", ""]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["album", "artist", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(deadline=None, max_examples=200)
@given(st.lists(words, max_size=12), answers, st.booleans())
def test_any_text_and_answer_is_judged_without_error(
    found: WordTagger, parts: list[str], answer: Any, is_known: bool
) -> None:
    text = " ".join(parts) if is_known else None
    before = placed(text, answer)
    after = found.applied(before, [text])
    assert [field.value for field in after.fields] == [field.value for field in before.fields]
    said = [after.tokens, *(field.writing for field in after.fields), *(end.ending for end in after.ends)]
    for tokens in said:
        assert tokens is None or tokens.tagged is None or -100 < tokens.tagged <= 1e-9
    again = WordTagger.model_validate_json(found.model_dump_json())
    assert again.applied(before, [text]) == after


def test_no_word_of_training_stands_in_the_taggers_json(found: WordTagger) -> None:
    text = found.model_dump_json()
    assert not [word for word in (*ARTISTS, *ALBUMS, "please", "album X") if word in text]


def test_answers_whose_values_are_in_no_text_have_no_tagger() -> None:
    assert trained([(text, {"kind": "music"}) for text, _ in ROWS]) is None
    assert trained(ROWS[:4]) is None
    assert trained([]) is None


def test_a_tagger_counts_for_less_where_right_answers_scatter(
    found: WordTagger, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert found.share == 1
    monkeypatch.setattr(tagger_module, "_SCATTER", 0.5)
    swapped = [(text, {"album": answer["artist"], "artist": answer["album"]}) for text, answer in ROWS[::5]]
    rows = [*ROWS, *swapped, *ROWS]
    scattered, steady = trained(rows), trained()
    assert scattered is not None
    assert steady is not None
    assert scattered.share < 0.8 * steady.share
    in_full = scattered.model_copy(update={"share": 1.0})
    text, answer = ROWS[0][0], {"album": "Nina"}
    assert log_odds(of(tagged(scattered, text, answer).tokens)) == pytest.approx(
        scattered.share * log_odds(of(tagged(in_full, text, answer).tokens)), rel=1e-6
    )


def test_damaged_weights_are_refused(found: WordTagger) -> None:
    card = found.model_dump()
    for change in (
        {"weights": card["weights"][:-8]},
        {"labels": card["labels"][:-1]},
        {"features": "?"},
        {"weights": card["weights"][:-8] + "AHwAfAB8"},
    ):
        with pytest.raises(ValidationError):
            WordTagger.model_validate({**card, **change})


def test_of_many_words_only_some_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tagger_module, "_MOST_CHARACTERS", 250)
    asked = list[int]()

    def place(number: int) -> Trust:
        asked.append(number)
        return placed(*ROWS[number])

    assert fitted_tagger([[text] for text, _ in ROWS], place) is None
    assert asked == list(range(0, len(ROWS), 4))


class Song(BaseModel):
    """A song."""

    title: str
    seconds: int


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    rows = [(f"Track {n}: {n + 50} s", Song(title=f"Track {n}", seconds=n + 50)) for n in range(24)]
    engine = LoraFinetuneEngine(
        FinetuneDataset.from_pairs(rows, output_cls=Song),
        base_model=tiny.save("llama", folder / "base"),
        output_dir=folder / "run",
        config=LoraSettings(rank=2, epochs=1),
    )
    engine.finetune()
    return engine.adapter


def test_an_adapter_has_the_tagger_of_its_rows_and_its_answers_are_judged_by_it(adapter: Path) -> None:
    tagger = read_card(adapter).taggers[schema_key(Song.model_json_schema())]
    assert set(tagger.labels) == {"", "title", "seconds"}
    llm = LoraLLM.from_adapter(adapter)
    songs = [
        one.structured_predict(Song, PromptTemplate("Track 3: 53 s"))
        for one in (llm, llm.model_copy(update={"taggers": {}}))
    ]
    assert songs[0] == songs[1]
    with_it, without = map(trust_of, songs)
    assert with_it.tokens is not None
    assert with_it.tokens.tagged is not None
    assert without.tokens is not None
    assert without.tokens.tagged is None
    assert with_it.tokens.total == pytest.approx(without.tokens.total, rel=1e-3)
    assert with_it.probability != without.probability


def test_a_card_whose_tagger_is_damaged_says_which_file_it_is(adapter: Path) -> None:
    path = adapter / CARD
    whole = path.read_text(encoding="utf-8")
    card = json.loads(whole)
    for tagger in card["taggers"].values():
        tagger["labels"] = tagger["labels"][1:]
    try:
        path.write_text(json.dumps(card), encoding="utf-8")
        with pytest.raises(ConfigurationError, match=r"(?s)finetune_structured\.json.*tagger"):
            read_card(adapter)
    finally:
        path.write_text(whole, encoding="utf-8")
