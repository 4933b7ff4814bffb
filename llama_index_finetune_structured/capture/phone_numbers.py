"""Phone numbers, found by form and confirmed by phonenumbers' tables of the countries' numbering plans."""

from __future__ import annotations

import re
from collections.abc import Callable

__all__ = ["redact_phones"]

_GAP = "[ \u00a0\u202f\u2011./-]"
_BEFORE = r"(?<![\w.+/-])"
_THREE = r"[2-9]\d\d"
# With a plus; in American groups; with a trunk or international zero. Other national forms (912 345 678) look as any
# number does.
_CANDIDATE = re.compile(
    rf"{_BEFORE}(?P<plus>\+[1-9](?:{_GAP}{{0,2}}[()]{{0,2}}{_GAP}?\d){{6,14}})(?![\w-])"
    rf"|{_BEFORE}(?P<american>(?:1{_GAP})?(?:\({_THREE}\){_GAP}?|{_THREE}[ .-]){_THREE}[ .-]\d{{4}})(?![\w-]|\.\d)"
    rf"|{_BEFORE}(?<!,)(?P<trunk>\(?0\d{{1,5}}\)?(?:{_GAP}\(?\d{{2,}}\)?){{1,5}})(?![\w-])"
)
_WORDS = (
    "tele(?:phone|fone?|foon)?|t[ée]l(?:[ée](?:phone|fono))?|phone|mobi(?:le|el)?|m[óo]vil|cell(?:ulare)?|handy|portable"
    "|fax|call|ring|dial|whatsapp|celular|puh|tlf|tfn|komórka|电话|電話"
)
_LABELLED = re.compile(
    rf"(?i)(?<![a-z.])(?P<label>(?:{_WORDS})(?: ?(?:number|no|nr|num)\.?)?\.?\"? ?[:=]? ?\"?)"
    rf"(?P<number>\+?\(?\d(?:{_GAP}{{0,2}}[()]?\d){{6,13}})(?![\w-])"
)
# With a trunk zero: the larger regions whose numbers begin so. Each further region makes other numbers valid as well.
_TRUNK_REGIONS = tuple(re.findall(r"\w+", "DE GB FR JP IT AU NL BE CH AT SE IN BR ZA IE FI KR TR CN"))
# After a word such as "phone" also those without one.
_REGIONS = (*_TRUNK_REGIONS, *re.findall(r"\w+", "US ES PT PL DK NO CZ GR MX SG HK IL AE HU"))
# Dates, numbers with two slashes, and lists whose numbers all begin with 0.
_NO_NUMBER = re.compile(
    r"\d{1,2}[./-]\d{1,2}[./-]\d{2,4}.*|\d{4}-\d\d?-\d\d?.*|\d+/\d+/.*|0\d+(?:[ ./-]0\d+)+"
)
_BESIDE_NUMBER = re.compile(r"\d \||\| \d")  # around one of 640 480 1024 768
_ENDS = re.compile(r"\d(?!\d)")


def redact_phones(text: str) -> str:
    """The text with ``[PHONE]`` for phone numbers."""
    text = _LABELLED.sub(_redact_labelled, text)
    parts, position = [], 0
    while (match := _CANDIDATE.search(text, position)) is not None:
        end = _number_end(match)
        parts += [
            text[position : match.start()],
            text[match.start() : match.end()] if end is None else "[PHONE]",
        ]
        position = match.end() if end is None else end  # what follows in the match may be another number
    return "".join((*parts, text[position:]))


def _redact_labelled(match: re.Match[str]) -> str:
    number = match["number"]
    end = _longest(number, lambda start: _is_possible(start) or _is_valid(start, _REGIONS))
    return match[0] if end is None else f"{match['label']}[PHONE]{number[end:]}"


def _number_end(match: re.Match[str]) -> int | None:
    """Where the number ends that the match begins with; None where it is no phone number."""
    if match["american"]:
        start, end = match.span()
        around = f"{match.string[max(0, start - 2) : start]}|{match.string[end : end + 2]}"
        is_listed = match[0].replace(" ", "").isdigit() and _BESIDE_NUMBER.search(around) is not None
        return None if is_listed else end
    length = _longest(match[0], _is_possible if match["plus"] else _is_national)
    return None if length is None else match.start() + length


def _longest(candidate: str, is_number: Callable[[str], bool]) -> int | None:
    """The end of the longest start of the candidate that is a number, or None."""
    ends = [match.end() for match in _ENDS.finditer(candidate)]
    return next((end for end in reversed(ends) if is_number(candidate[:end])), None)


def _is_national(number: str) -> bool:
    """Whether a number with a trunk zero is one of a region; dates and short ones are not."""
    digits = sum(char.isdigit() for char in number)
    return 9 <= digits <= 12 and not _NO_NUMBER.fullmatch(number) and _is_valid(number, _TRUNK_REGIONS)


def _is_valid(number: str, regions: tuple[str, ...]) -> bool:
    """Whether one of the regions has such numbers."""
    import phonenumbers

    for region in regions:
        try:
            parsed = phonenumbers.parse(number, region)
        except phonenumbers.NumberParseException:
            continue
        if phonenumbers.is_valid_number(parsed):
            return True
    return False


def _is_possible(number: str) -> bool:
    """Whether a number with a country's code has a length that the country has."""
    import phonenumbers

    try:
        return bool(phonenumbers.is_possible_number(phonenumbers.parse(number, None)))
    except phonenumbers.NumberParseException:
        return False
