"""Forms of keys and passwords: the detectors of detect-secrets, and what these lack."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module

from .named_secrets import NAME_BEFORE, NAME_HINTS, NAMED, redact_named

__all__ = ["rules_for"]


@dataclass(frozen=True)
class Rule:
    """One form. ``hints``: the pattern is only tried on text with one of them in lower case."""

    hints: tuple[str, ...]
    pattern: re.Pattern[str]
    replacement: str | Callable[[re.Match[str]], str]


_BLOCKS = re.compile(
    r"-{4,5} ?BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)? ?-{4,5}[\s\S]*?"
    r"(?:-{4,5} ?END [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)? ?-{4,5}|\Z)"
    r"|PuTTY-User-Key-File-\d[\s\S]*?(?:Private-MAC: ?[0-9a-f]+|\Z)"
    r"|AGE-SECRET-KEY-1[0-9A-Z]{30,}"
)
# Up to the last "@" before the path, as passwords may hold one; a name alone where it is as long as a token.
_URL_CREDENTIALS = re.compile(r"""://(?:[^\s/?#"'<>`:@]*:[^\s/?#"'<>`]+|(?=[^\s@]*\d)[A-Za-z0-9_-]{16,})@""")
# Of data bases, whose passwords may hold a slash too.
_DATABASES = ("redis", "postgres", "mysql", "mariadb", "mongodb", "amqp")
_DATABASE_URL = re.compile(
    r"""(?i)\b((?:rediss?|postgres|postgresql|mysql|mariadb|mongodb(?:\+srv)?|amqps?)://)"""
    r"""[^\s/?#"'<>`:@]*:[^\s"'<>`]+@"""
)
_PASSWORD_OPTION = re.compile(
    r"""(?<!\S)((?:-u|--user)[ =]["']?[^\s:"']+:|(?:mysql\w*|mariadb\S*)\s(?:[^\n]*\s)?-p|sshpass\s+-p ?)[^\s"']+"""
)
_BASIC = re.compile(r"(?i)\b(basic\s+)([A-Za-z0-9+/_-]{8,}={0,2})")
_BEARER = re.compile(
    r"(?i)\b((?:bearer|apikey|api-key|genie[kK]ey|ssws|authorization:\s*[a-z]+)\s+)"
    r"(?=[^\s\"']*\d)[A-Za-z0-9._~+/=-]{16,}"
)
_COOKIE = re.compile(r"(?i)(?<![\w-])((?:set-)?cookie\\?[\"']?\s*[:=]\s*\\?[\"']?)(?=[^\s=]+=)[^\r\n\"'\\]+")
_JWT = re.compile(r"\bey[JK][A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*){0,3}")
_QUERY = re.compile(
    r"(?i)([?&](?:sig|signature|x-amz-signature|x-goog-signature|key|auth|code)=)(?=[^&\s'\"<>]*\d)[^&\s'\"<>]{12,}"
)

# Beginnings of keys that detect-secrets lacks, or knows in one of several forms, with what follows them.
_KEYS = {
    "sk-": r"[spr]k-[A-Za-z0-9_-]{16,}",  # OpenAI, Anthropic, OpenRouter, DeepSeek, Langfuse
    "k_": r"[spr]k_[A-Za-z0-9_-]{16,}",  # Stripe's other kinds, Clerk, ElevenLabs
    "whsec_": r"whsec_[A-Za-z0-9+/=]{24,}",
    "akc": r"AKC[A-Za-z0-9]{50,}",  # Artifactory
    "github_pat_": r"github_pat_[A-Za-z0-9_]{20,}",
    "gl": r"gl(?:pat|dt|ft|soat|rt|cbt|ptt|agent|oas|imt|ffct)-[A-Za-z0-9_.-]{16,}"
    r"|gl(?:c|sa)_[A-Za-z0-9_+/=]{32,}",  # GitLab, Grafana
    "aiza": r"AIza[0-9A-Za-z_-]{30,}",
    "gocspx-": r"GOCSPX-[A-Za-z0-9_-]{20,}",
    "ya29.": r"ya29\.[A-Za-z0-9_-]{20,}",
    "hf_": r"hf_[A-Za-z0-9]{20,}",
    "xox": r"xox[abceoprs](?:\.xox[bp])?-[A-Za-z0-9-]{10,}",
    "xapp-": r"xapp-\d-[A-Za-z0-9-]{10,}",
    "npm_": r"npm_[A-Za-z0-9]{30,}",
    "pypi-": r"pypi-[A-Za-z0-9_-]{30,}",
    "dapi": r"dapi[0-9a-f]{32}(?:-\d)?",  # Databricks
    "_v1_": r"do[opr]_v1_[0-9a-f]{64}|b_v1_[A-Za-z0-9]{30,}",  # DigitalOcean
    "shp": r"shp(?:at|ca|pa|ss|ua|tka)_[0-9a-fA-F]{32}",  # Shopify
    "sq0": r"sq0[a-z]{3}-[0-9A-Za-z_-]{22,43}",  # Square
    "eaaa": r"EAAA[0-9A-Za-z_-]{60}",
    "nr": r"NR(?:AK|JS|II|AL|RA)-[A-Za-z0-9_-]{19,42}|[0-9a-f]{36}NRAL",  # New Relic
    "hv": r"hv[sbr]\.[A-Za-z0-9_-]{24,}",  # Vault
    "atlasv1": r"[A-Za-z0-9]{14}\.atlasv1\.[A-Za-z0-9_=-]{60,}",  # Terraform
    "lin_": r"lin_(?:api|oauth)_[A-Za-z0-9]{32,}",  # Linear
    "secret_": r"secret_[A-Za-z0-9]{43}",  # Notion
    "ntn_": r"ntn_[A-Za-z0-9]{40,}",
    "fig": r"fig[dour]_[A-Za-z0-9_-]{30,}",  # Figma
    "pmak-": r"PMAK-[0-9a-f]{24}-[0-9a-f]{34}",  # Postman
    "t3": r"AT(?:ATT|CTT|BBT)3[A-Za-z0-9_=-]{50,}",  # Atlassian
    "atbb": r"ATBB[A-Za-z0-9]{28,}",
    "hrku-": r"HRKU-[A-Za-z0-9_-]{36,}",  # Heroku
    "key-": r"key-[0-9a-f]{32}",  # Mailgun
    "xkeysib-": r"xkeysib-[0-9a-f]{64}-[A-Za-z0-9]{16}",  # Brevo
    "sntry": r"sntry[su]_[A-Za-z0-9_+/=-]{32,}",  # Sentry
    "dop": r"dop_[A-Za-z0-9]{40,}",
    "dp.": r"dp\.(?:pt|st|ct|sa|scim|audit)\.(?:[a-z0-9_-]+\.)?[A-Za-z0-9]{40,}",  # Doppler
    "gsk_": r"gsk_[A-Za-z0-9]{40,}",  # Groq
    "xai-": r"xai-[A-Za-z0-9]{60,}",
    "pplx-": r"pplx-[A-Za-z0-9]{40,}",  # Perplexity
    "r8_": r"r8_[A-Za-z0-9]{37}",  # Replicate
    "nvapi-": r"nvapi-[A-Za-z0-9_-]{50,}",
    "pcsk_": r"pcsk_[A-Za-z0-9_]{40,}",  # Pinecone
    "lsv2_": r"lsv2_(?:pt|sk)_[0-9a-f]{32}_[0-9a-f]{10}",  # LangSmith
    "tvly-": r"tvly-[A-Za-z0-9-]{20,}",
    "sbp_": r"sbp_[0-9a-f]{40}",  # Supabase
    "sb_secret_": r"sb_secret_[A-Za-z0-9_-]{20,}",
    "pscale_": r"pscale_(?:tkn|pw|oauth)_[A-Za-z0-9_.=-]{32,}",  # PlanetScale
    "dckr_": r"dckr_(?:pat|oat)_[A-Za-z0-9_-]{27,}",  # Docker
    "rubygems_": r"rubygems_[0-9a-f]{48}",
    "cio": r"cio[A-Za-z0-9]{32}(?![A-Za-z0-9])",  # crates.io
    "pul-": r"pul-[0-9a-f]{40}",  # Pulumi
    "nfp_": r"nfp_[A-Za-z0-9]{36}",  # Netlify
    "fo1_": r"fo1_[A-Za-z0-9_-]{43}",  # Fly.io
    "fm": r"fm[12][ar]?_[A-Za-z0-9+/=_-]{80,}",
    "rnd_": r"rnd_[A-Za-z0-9]{26,}",  # Render
    "pat": r"pat[A-Za-z0-9]{14}\.[0-9a-f]{64}",  # Airtable
    "apify_api_": r"apify_api_[A-Za-z0-9]{30,}",
    "eyjrijoi": r"eyJrIjoi[A-Za-z0-9+/=]{40,}",  # Grafana's older ones
    "discord": r"(?<=discord\.com/api/webhooks/)\d+/[A-Za-z0-9_-]{60,}|(?<=discordapp\.com/api/webhooks/)\d+/\S{60,}",
    "akia": r"AKIA[0-9A-Z]{16}",
    "asia": r"ASIA[0-9A-Z]{16}",
    "abia": r"ABIA[0-9A-Z]{16}",
    "sharedaccesssignature": r"SharedAccessSignature sr=\S+",
    "re_": r"re_[A-Za-z0-9]{8}_[A-Za-z0-9]{20,}",  # Resend
    "k.ey": r"[ps]k\.eyJ[A-Za-z0-9_-]{20,}\.[A-Za-z0-9_-]{16,}",  # Mapbox
    "sl.": r"sl\.(?:u\.)?[A-Za-z0-9_-]{40,}",  # Dropbox
    "eaac": r"EAAC[A-Za-z0-9]{40,}",  # Facebook
    "/1": r"[012]/1\d{12,}:[0-9a-f]{32}",  # Asana
    "aaaaaaaaaaaaaaaa": r"A{16,}(?=[A-Za-z0-9]*%)[A-Za-z0-9%]{60,}",  # Twitter
    "v1.0-": r"v1\.0-[0-9a-f]{24}-[0-9a-f]{146}",  # Cloudflare's origin CA
}  # fmt: skip
# Modules of detect-secrets with the hints of their patterns. Those left out find what the patterns above find, names
# ("keyword", which takes code for secrets), any text of high entropy, public addresses, or need a second line.
_DETECTORS: dict[str, tuple[str, ...]] = {
    "cloudant": ("cloudant",),
    "discord": (".",),
    "github_token": ("gho_", "ghp_", "ghr_", "ghs_", "ghu_"),
    "gitlab_token": ("gr1348941",),
    "ibm_cloud_iam": ("ibm",),
    "ibm_cos_hmac": ("hmac", "ibm"),
    "mailchimp": ("-us",),
    "sendgrid": ("sg.",),
    "slack": ("xox", "hooks.slack.com"),
    "telegram_token": (":aa",),
    "twilio": ("ac", "sk"),
}


def _redact_basic(match: re.Match[str]) -> str:
    """``Basic [TOKEN]`` where the word after it is a name and a password in base64; "basic" is a word as well."""
    try:
        padded = match[2].rstrip("=") + "=" * (-len(match[2].rstrip("=")) % 4)
        decoded = base64.b64decode(padded, altchars=b"-_" if set("-_") & set(padded) else None)
    except ValueError:
        return match[0]
    return f"{match[1]}[TOKEN]" if b":" in decoded else match[0]


_RANDOM = re.compile(r"\d[A-Za-z]|[a-z][A-Z]")
_WITHIN = re.compile(r"[A-Za-z0-9_/+]")


def _redact_key(match: re.Match[str]) -> str:
    """``[KEY]`` unless the text is made of words and numbers: ``sk-learn-pipeline-of-steps``, ``pk_user_id_1``."""
    text = match[0]
    # Not a lookbehind: a pattern that begins with a text is searched for ten times as fast.
    if match.start() and _WITHIN.match(match.string[match.start() - 1]):
        return text
    return "[KEY]" if _RANDOM.search(text[3:]) or text[3:].isupper() else text


def _detected(match: re.Match[str]) -> str:
    """``[KEY]`` for what a detector matches, with the space and quotes that some patterns have around it."""
    text = match[0]
    start = len(text) - len(text.lstrip(" \t\r\n\"'=:"))
    end = len(text.rstrip(" \t\r\n\"'"))
    return f"{text[:start]}[KEY]{text[end:]}"


@lru_cache(maxsize=1)
def _secret_rules() -> tuple[Rule, ...]:
    """All rules, in the order in which they are applied, that of names last. Loads detect-secrets when first called."""
    keys = [
        Rule((hint,), re.compile(rf"(?:{pattern})(?![A-Za-z0-9])"), _redact_key)
        for hint, pattern in _KEYS.items()
    ]
    return (
        Rule(("private key", "putty-user-key", "age-secret-key"), _BLOCKS, "[PRIVATE_KEY]"),
        Rule(_DATABASES, _DATABASE_URL, r"\1[CREDENTIALS]@"),
        Rule(("://",), _URL_CREDENTIALS, "://[CREDENTIALS]@"),
        Rule(("-u", "--user", " -p"), _PASSWORD_OPTION, r"\1[SECRET]"),
        Rule(("basic",), _BASIC, _redact_basic),
        Rule(("bearer", "apikey", "api-key", "geniekey", "ssws", "authorization"), _BEARER, r"\1[TOKEN]"),
        Rule(("cookie",), _COOKIE, r"\1[SECRET]"),
        *keys,
        *_detector_rules(),
        Rule(("eyj", "eyk"), _JWT, "[TOKEN]"),
        Rule(("sig", "key=", "auth=", "code="), _QUERY, r"\1[SECRET]"),
        Rule(NAME_HINTS, NAMED, redact_named),
    )


def rules_for(text: str) -> list[Rule]:
    """The rules whose hints the text contains, in their order."""
    lower = text.lower()
    by_hint = _rules_by_hint()
    found = {number for hint, numbers in by_hint.items() if hint in lower for number in numbers}
    rules = _secret_rules()
    last = len(rules) - 1
    if last in found and not NAME_BEFORE.search(lower):
        found.discard(last)
    return [rules[number] for number in sorted(found)]


@lru_cache(maxsize=1)
def _rules_by_hint() -> dict[str, list[int]]:
    by_hint: dict[str, list[int]] = {}
    for number, rule in enumerate(_secret_rules()):
        for hint in rule.hints:
            by_hint.setdefault(hint, []).append(number)
    return by_hint


def _detector_rules() -> list[Rule]:
    rules = []
    for name, hints in _DETECTORS.items():
        module = import_module(f"detect_secrets.plugins.{name}")
        for detector in vars(module).values():
            if isinstance(detector, type) and detector.__module__ == module.__name__:
                for pattern in getattr(detector, "denylist", ()):
                    # The patterns have no boundaries: as they are, they match within hashes and words.
                    bounded = re.compile(
                        rf"(?<![A-Za-z0-9_])(?:{pattern.pattern})(?:(?<=[^A-Za-z0-9])|(?![A-Za-z0-9]))",
                        pattern.flags,
                    )
                    rules.append(Rule(hints, bounded, _detected))
    return rules
