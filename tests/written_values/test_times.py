"""Times of day and points in time are read as they are written, found in texts, and never another one for sure."""

from __future__ import annotations

from datetime import datetime, time, timedelta, timezone
from pathlib import Path
from typing import Annotated, Any

import pytest
from babel.dates import format_date, format_datetime, format_time
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import AwareDatetime, BaseModel, TypeAdapter, ValidationError

from llama_index_finetune_structured import AsWritten, FinetuneDataset, compare, load_schema
from llama_index_finetune_structured.written_values.dates import read_date
from llama_index_finetune_structured.written_values.kinds import WrittenKind
from llama_index_finetune_structured.written_values.readings import DocumentTexts, Reading
from llama_index_finetune_structured.written_values.times import read_datetime, read_time

LOCALES = ["de", "de_CH", "en_US", "en_GB", "en_IN", "fr", "fr_CA", "es", "pt_BR", "pl", "sv", "it", "nl", "ja", "ko",
           "da", "fi", "cs", "ru", "zh", "ar_EG", "hi"]  # fmt: skip
WITH_DATES = ["de", "en_US", "en_GB", "fr_CA", "es", "fi", "ja"]
NO_TEXTS = DocumentTexts()
TIMES = st.times().map(lambda found: found.replace(second=0, microsecond=0))
MOMENTS = st.datetimes(datetime(1970, 1, 1), datetime(2060, 12, 31)).map(
    lambda found: found.replace(second=0, microsecond=0)
)
ZONES = [timezone(timedelta(hours=hours)) for hours in (-5, 1, 9)] + [
    timezone.utc,
    timezone(timedelta(hours=5.5)),
]


@given(TIMES, st.sampled_from(LOCALES), st.sampled_from(["short", "medium"]))
@settings(max_examples=15)
def test_a_time_in_a_usual_spelling_of_its_locale_is_read_as_it_was_meant(
    moment: time, locale: str, form: str
) -> None:
    text = format_time(moment, form, locale=locale)
    assert read_time(text, [locale], NO_TEXTS) == Reading(moment), text


@given(MOMENTS, st.sampled_from(WITH_DATES), st.sampled_from(["short", "medium", "long"]), st.booleans())
@settings(max_examples=15)
def test_a_point_in_time_in_a_usual_spelling_of_its_locale_is_read_as_it_was_meant(
    moment: datetime, locale: str, form: str, time_first: bool
) -> None:
    parts = [format_date(moment, form, locale), format_time(moment, "short", locale=locale)]
    for text in (
        " ".join(parts[::-1] if time_first else parts),
        format_datetime(moment, "medium", locale=locale),
    ):
        assert read_datetime(text, [locale], NO_TEXTS) == Reading(moment), text


@given(MOMENTS, st.sampled_from(ZONES), st.sampled_from(LOCALES))
@settings(max_examples=20)
def test_the_canonical_text_is_read_the_same_in_all_locales(
    moment: datetime, zone: timezone, locale: str
) -> None:
    for value in (moment, moment.replace(tzinfo=zone)):
        texts = WrittenKind("datetime", ()).text(value), WrittenKind("time", ()).text(value.timetz())
        assert read_datetime(texts[0], [locale], NO_TEXTS) == Reading(value)
        found = read_time(texts[1], [locale], NO_TEXTS)
        assert (found.value.isoformat(), found.others) == (value.timetz().isoformat(), ())


@given(MOMENTS, st.sampled_from(WITH_DATES), st.sampled_from(["short", "medium", "long"]))
@settings(max_examples=12)
def test_what_is_found_in_a_text_is_read_back_as_the_value(moment: datetime, locale: str, form: str) -> None:
    day, clock = format_date(moment, form, locale), format_time(moment, "short", locale=locale)
    document = DocumentTexts([f"No. 4711, 12.50: {day} {clock}\nfrom 08:15:30 to 23:45:10, 7 of 9"])
    for name, value in (("datetime", moment), ("time", moment.time())):
        kind = WrittenKind(name, (locale,))
        spelled = kind.spelling(kind.text(value), document)
        assert spelled in document.texts[0], spelled
        assert kind.read(spelled, document) == Reading(value)


@given(MOMENTS, st.sampled_from(WITH_DATES), st.lists(st.sampled_from(WITH_DATES), max_size=3))
@settings(max_examples=12)
def test_a_point_in_time_is_right_or_unsure_whatever_other_locales_are_named(
    moment: datetime, locale: str, others: list[str]
) -> None:
    text = format_datetime(moment, "short", locale=locale)
    for locales in ([*others, locale], [locale, *others]):
        value, unsure = read_datetime(text, locales, NO_TEXTS)
        assert moment in (value, *unsure), text


@pytest.mark.parametrize(
    ("text", "locales", "value"),
    [
        ("3 pm", ["en"], "15:00"), ("3.30 p.m.", ["en"], "15:30"), ("12 noon", ["en"], "12:00"),
        ("12:30 AM", ["en_US"], "00:30"), ("15 Uhr", ["de"], "15:00"), ("15 Uhr 30", ["de"], "15:30"),
        ("15.30 Uhr", ["de"], "15:30"), ("3 Uhr nachmittags", ["de"], "15:00"), ("15h30", ["fr"], "15:30"),
        ("15 h", ["fr"], "15:00"), ("15 h 30 min", ["fr_CA"], "15:30"), ("3:30 de la tarde", ["es"], "15:30"),
        ("kl. 15.30", ["sv"], "15:30"), ("午後3時30分", ["ja"], "15:30"), ("٣:٣٠ م", ["ar_EG"], "15:30"),
        ("24:00", ["de"], "00:00"), ("3:30", ["de"], "03:30"), ("12:30", ["en_US"], "12:30"),
        ("15:30:12.5", [], "15:30:12.500"), ("15:30 MESZ", ["de"], "15:30+02:00"),
        ("15:30 (CET)", ["de"], "15:30+01:00"), ("3:30 PM EST", ["en_US"], "15:30-05:00"),
        ("15:30 UTC+2", [], "15:30+02:00"), ("15:30 +0530", [], "15:30+05:30"), ("15:30Z", [], "15:30+00:00"),
    ],
)  # fmt: skip
def test_times_of_12_and_24_hours_with_words_and_zones_are_read(
    text: str, locales: list[str], value: str
) -> None:
    found = read_time(text, locales, NO_TEXTS)
    assert found == Reading(time.fromisoformat(value))
    assert found.value.utcoffset() == time.fromisoformat(value).utcoffset()


@pytest.mark.parametrize(
    ("text", "locales", "value"),
    [
        ("Freitag, 03.04.2026, 15:30 Uhr", ["de"], "2026-04-03T15:30"),
        ("15:30 Uhr am 3. April 2026", ["de"], "2026-04-03T15:30"),
        ("12:30 Uhr am 3. April 2026", ["de"], "2026-04-03T12:30"),
        ("3. April 2026 um 15 Uhr MESZ", ["de"], "2026-04-03T15:00+02:00"),
        ("31.12.2026, 24:00 Uhr", ["de"], "2027-01-01T00:00"),
        ("3:30 PM on April 3rd, 2026", ["en_US"], "2026-04-03T15:30"),
        ("Fri, 03 Apr 2026 15:30:00 +0200", ["en"], "2026-04-03T15:30+02:00"),
        ("Fri Apr 3 15:30:00 UTC 2026", [], "2026-04-03T15:30+00:00"),
        ("le 3 avril 2026 à 15 h 30", ["fr"], "2026-04-03T15:30"),
        ("3 de abril de 2026, a las 15:30", ["es"], "2026-04-03T15:30"),
        ("2026年4月3日 15時30分", ["ja"], "2026-04-03T15:30"),
        ("20260403T153000Z", [], "2026-04-03T15:30+00:00"),
        ("3. April 2026", ["de"], "2026-04-03T00:00"),
    ],
)  # fmt: skip
def test_a_date_and_a_time_beside_each_other_are_a_point_in_time(
    text: str, locales: list[str], value: str
) -> None:
    assert read_datetime(text, locales, NO_TEXTS) == Reading(datetime.fromisoformat(value))


@pytest.mark.parametrize(
    "text",
    ["", "15", "25:00", "15:60", "15 am", "3 hours", "9:00-10:00", "3 pm - 4 pm", "15:30 bis", "15:30 RAUM"],
)
def test_what_is_no_one_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="time"):
        read_time(text, ["en_GB"], NO_TEXTS)


@pytest.mark.parametrize(
    "text",
    ["15:30", "3. April 2026 10 bis 15 Uhr", "03.04.2026 9:00-10:00", "3.4. 15:30", "2026-13-01T00:00"],
)
def test_what_is_no_one_point_in_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="time"):
        read_datetime(text, ["de"], NO_TEXTS)


def test_an_hour_of_a_clock_of_12_hours_is_not_sure_unless_the_document_has_24() -> None:
    morning, afternoon = time(3, 30), time(15, 30)
    for locales in ([], ["en_US"], ["en_US", "de"]):
        assert read_time("3:30", locales, NO_TEXTS) == Reading(morning, (afternoon,))
        assert read_time("3:30", locales, DocumentTexts(["from 14:15"])) == Reading(morning)
    assert read_time("03:30", [], NO_TEXTS) == Reading(morning)


def test_the_day_of_the_week_tells_day_and_month_apart() -> None:
    day = datetime(2026, 4, 3)
    for text in ("Fri 04/03/2026", "Friday, 03/04/2026", "04/03/2026 (Fri)"):
        assert read_date(text, [], NO_TEXTS) == Reading(day.date())
        assert read_datetime(f"{text}, 3:30 pm", [], NO_TEXTS) == Reading(datetime(2026, 4, 3, 15, 30))
    assert read_datetime("04/03/2026 3 pm", [], NO_TEXTS).others


def test_an_abbreviation_of_several_zones_is_not_sure() -> None:
    both = read_time("10:00:00 IST", ["en_IN", "en_IE"], NO_TEXTS)
    assert [value.utcoffset() for value in (both.value, *both.others)] == [
        timedelta(hours=5.5),
        timedelta(hours=1),
    ]


class Meeting(BaseModel):
    begins: Annotated[datetime, AsWritten("en_US")]
    doors: Annotated[time, AsWritten("en_US")] | None = None


def test_a_class_reads_both_and_writes_what_it_reads() -> None:
    found = Meeting.model_validate_json('{"begins": "April 3, 2026 at 3:30 PM", "doors": "2 pm"}')
    assert found == Meeting(begins=datetime(2026, 4, 3, 15, 30), doors=time(14))
    assert Meeting.model_validate_json(found.model_dump_json()) == found
    with pytest.raises(ValidationError, match="'3:30' may be 03:30:00 or 15:30:00"):
        Meeting.model_validate_json('{"begins": "2026-04-03T15:30", "doors": "3:30"}')


TEXT = "The meeting begins on April 3, 2026 at 3:30 PM; doors open at 2 pm."
WRITTEN = {"begins": "April 3, 2026 at 3:30 PM", "doors": "2 pm"}
PLAIN = {"begins": "2026-04-03T15:30:00", "doors": "14:00"}


@pytest.mark.parametrize(
    "label", [WRITTEN, PLAIN, Meeting(begins=datetime(2026, 4, 3, 15, 30), doors=time(14))]
)
def test_labels_become_what_stands_in_the_text_and_both_count_as_equal(label: Any) -> None:
    data = FinetuneDataset.from_pairs([(TEXT, label)], output_cls=Meeting)
    assert data[0].answer_object() == WRITTEN
    by_schema = [row.model_copy(update={"answer_class": None}) for row in data]
    for rows in (data, by_schema):
        card = compare({"plain": lambda _: PLAIN, "written": lambda _: WRITTEN}, rows, show_progress=False)
        assert [card.systems[name].exact_match for name in card.systems] == [1, 1]


def test_a_yaml_schema_has_times_in_the_locales_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / "schema.yaml"
    path.write_text("name: Meeting\nlocales: [de]\nfields: {begins: datetime, doors: 'time?'}\n")
    found = load_schema(path).model_validate({"begins": "3. April 2026 um 15 Uhr", "doors": "14.30 Uhr"})
    assert vars(found) == {"begins": datetime(2026, 4, 3, 15), "doors": time(14, 30)}


def test_a_field_may_ask_for_a_zone() -> None:
    adapter = TypeAdapter(Annotated[AwareDatetime, AsWritten("de")])
    assert adapter.validate_python("3. April 2026, 15:30 Uhr MESZ") == datetime(
        2026, 4, 3, 13, 30, tzinfo=timezone.utc
    )
    with pytest.raises(ValidationError, match="timezone"):
        adapter.validate_python("3. April 2026, 15:30 Uhr")


@pytest.mark.parametrize(
    ("kind", "text", "value", "written"),
    [
        ("time", "at 15:30 in", "15:30:00", "15:30"),
        ("time", "15:30\nOrt", "15:30:00", "15:30"),
        ("time", "(15:30)", "15:30:00", "15:30"),
        ("time", "(starts 3:30 pm)", "15:30:00", "3:30 pm"),
        ("time", "3:30 p.m. at home", "15:30:00", "3:30 p.m."),
        ("time", "(from 15:30 UTC) on", "15:30:00Z", "15:30 UTC"),
        ("datetime", "Termin: 03.06.2024 15:30\nOrt", "2024-06-03T15:30:00", "03.06.2024 15:30"),
        (
            "datetime",
            "sent (2024-06-03T15:30:00Z), read",
            "2024-06-03T15:30:00+00:00",
            "2024-06-03T15:30:00Z",
        ),
        ("datetime", "sent 20240603T153000Z.", "2024-06-03T15:30:00+00:00", "20240603T153000Z"),
        (
            "datetime",
            "at 2024-06-03 15:30:00.250 on",
            "2024-06-03T15:30:00.250000",
            "2024-06-03 15:30:00.250",
        ),
    ],
)
def test_what_is_found_has_nothing_of_the_text_around_it(
    kind: str, text: str, value: str, written: str
) -> None:
    assert WrittenKind(kind, ("en_GB", "de")).spelling(value, DocumentTexts([text])) == written
