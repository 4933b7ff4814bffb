"""String formats of JSON schema that a grammar can say, those of time as patterns that Python's types accept."""

from __future__ import annotations

__all__ = ["KNOWN_FORMATS", "PATTERNS"]

KNOWN_FORMATS = {"email", "hostname", "ipv4", "ipv6", "uuid", "uri"}

_YEAR = r"(?:[1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])"
_LEAP_YEAR = r"(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_MONTH_AND_DAY = (
    r"(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    r"|02-(?:0[1-9]|1[0-9]|2[0-8]))"
)
_DATE = f"(?:{_YEAR}-{_MONTH_AND_DAY}|{_LEAP_YEAR}-02-29)"
_TIME = (
    r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,6})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])?"
)
_DAYS = r"[0-9]{1,5}D"
_SECONDS = r"[0-9]{1,5}(?:\.[0-9]{1,6})?S"
_CLOCK = f"T(?:[0-9]{{1,5}}H(?:[0-9]{{1,5}}M)?(?:{_SECONDS})?|[0-9]{{1,5}}M(?:{_SECONDS})?|{_SECONDS})"

PATTERNS = {
    "date": f"^{_DATE}$",
    "time": f"^{_TIME}$",
    "date-time": f"^{_DATE}T{_TIME}$",
    "duration": f"^P(?:[0-9]{{1,5}}Y(?:{_DAYS})?(?:{_CLOCK})?|{_DAYS}(?:{_CLOCK})?|{_CLOCK})$",
}
