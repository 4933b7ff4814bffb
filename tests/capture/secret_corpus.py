"""Generated texts with one secret each, of many kinds in many contexts, and texts that only look as if."""

from __future__ import annotations

import base64
import json
import random
import string
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass

ALNUM = string.ascii_letters + string.digits
LOWER = string.ascii_lowercase + string.digits
UPPER = string.ascii_uppercase + string.digits
HEX = "0123456789abcdef"
URLSAFE = ALNUM + "-_"


@dataclass(frozen=True)
class Planted:
    """``text`` holds ``secret``, which redaction has to remove."""

    kind: str
    text: str
    secret: str


def some(rng: random.Random, alphabet: str, length: int) -> str:
    """Random characters, the first a letter and the last one a digit or letter, as real keys nearly always have."""
    letters = [char for char in alphabet if char.isalnum()]
    return (
        "".join(rng.choice(alphabet) for _ in range(length - 2)) + rng.choice(letters) + rng.choice(letters)
    )


def _form(template: str) -> Callable[[random.Random], str]:
    """A key from a template: ``{a36}`` are 36 characters of the alphabet ``a``."""
    alphabets = {
        "a": ALNUM,
        "l": LOWER,
        "u": UPPER,
        "h": HEX,
        "s": URLSAFE,
        "d": string.digits,
        "b": ALNUM + "+/",
    }

    def make(rng: random.Random) -> str:
        parts = template.split("{")
        text = parts[0]
        for part in parts[1:]:
            spec, _, rest = part.partition("}")
            text += some(rng, alphabets[spec[0]], int(spec[1:])) + rest
        return text

    return make


# The forms that the vendors document, or that their keys have.
KEYS = {
    name: _form(template)
    for name, template in {
        "aws access key": "AKIA{u16}",
        "aws session key": "ASIA{u16}",
        "google api": "AIza{s35}",
        "google oauth secret": "GOCSPX-{s28}",
        "google access token": "ya29.{s100}",
        "github": "ghp_{a36}",
        "github oauth": "gho_{a36}",
        "github user": "ghu_{a36}",
        "github server": "ghs_{a36}",
        "github refresh": "ghr_{a36}",
        "github fine-grained": "github_pat_{a22}_{a59}",
        "gitlab": "glpat-{s20}",
        "gitlab runner": "glrt-{s20}",
        "gitlab deploy": "gldt-{s20}",
        "gitlab registration": "GR1348941{s20}",
        "slack bot": "xoxb-{d12}-{d12}-{a24}",
        "slack user": "xoxp-{d12}-{d12}-{d12}-{h32}",
        "slack app": "xapp-1-A{u10}-{d13}-{h64}",
        "slack config": "xoxe.xoxp-1-{a40}",
        "stripe": "sk_live_{a24}",
        "stripe restricted": "rk_live_{a24}",
        "stripe test": "sk_test_{a99}",
        "stripe webhook": "whsec_{a32}",
        "twilio": "SK{h32}",
        "twilio account": "AC{h32}",
        "sendgrid": "SG.{s22}.{s43}",
        "mailgun": "key-{h32}",
        "mailchimp": "{h32}-us12",
        "brevo": "xkeysib-{h64}-{a16}",
        "npm": "npm_{a36}",
        "pypi": "pypi-AgEIcHlwaS5vcmc{s80}",
        "hugging face": "hf_{a34}",
        "openai": "sk-{a20}T3BlbkFJ{a20}",
        "openai project": "sk-proj-{s74}T3BlbkFJ{s74}",
        "openai service": "sk-svcacct-{s60}",
        "anthropic": "sk-ant-api03-{s93}AA",
        "openrouter": "sk-or-v1-{h64}",
        "groq": "gsk_{a52}",
        "xai": "xai-{a80}",
        "perplexity": "pplx-{a48}",
        "replicate": "r8_{a37}",
        "nvidia": "nvapi-{s64}",
        "langsmith": "lsv2_pt_{h32}_{h10}",
        "pinecone": "pcsk_{a6}_{a63}",
        "databricks": "dapi{h32}",
        "digitalocean": "dop_v1_{h64}",
        "discord": "M{a23}.{s6}.{s27}",
        "telegram": "{d9}:AA{s33}",
        "shopify": "shpat_{h32}",
        "square": "sq0csp-{s43}",
        "square access": "EAAA{s60}",
        "artifactory": "AKC{a64}",
        "new relic": "NRAK-{u27}",
        "vault": "hvs.{s90}",
        "terraform": "{a14}.atlasv1.{a67}",
        "linear": "lin_api_{a40}",
        "notion": "ntn_{a46}",
        "notion old": "secret_{a43}",
        "figma": "figd_{s40}",
        "postman": "PMAK-{h24}-{h34}",
        "atlassian": "ATATT3xFfGF0{s170}",
        "bitbucket": "ATBB{a32}",
        "heroku": "HRKU-{s60}",
        "grafana": "glsa_{a32}_{h8}",
        "sentry": "sntrys_{b64}",
        "doppler": "dp.pt.{a43}",
        "supabase": "sbp_{h40}",
        "planetscale": "pscale_tkn_{s43}",
        "docker": "dckr_pat_{s27}",
        "rubygems": "rubygems_{h48}",
        "crates": "cio{a32}",
        "pulumi": "pul-{h40}",
        "netlify": "nfp_{a36}",
        "fly": "fo1_{s43}",
        "airtable": "pat{a14}.{h64}",
        "resend": "re_{a8}_{a24}",
        "azure storage": "AccountKey={b86}==",
        "age": "AGE-SECRET-KEY-1{u58}",
    }.items()
}
KEYS["jwt"] = lambda rng: ".".join(
    (
        base64.urlsafe_b64encode(b'{"alg":"HS256"}').decode().rstrip("="),
        base64.urlsafe_b64encode(json.dumps({"sub": some(rng, ALNUM, 12)}).encode()).decode().rstrip("="),
        some(rng, URLSAFE, 43),
    )
)
KEY_CONTEXTS = (
    "{}",
    "The key is {} now.",
    'key = "{}"',
    "curl -H 'X-Thing: {}' https://example.com",
    '{"value": "{}"}',
    "({})",
    "first line\n{}\nlast line",
    "see `{}`, please",
    "https://example.com/?k={}&x=1",
)

# Vendors whose keys have no form of their own are known by the name before them.
NAMED_KEYS = {
    "aws secret": ("AWS_SECRET_ACCESS_KEY", _form("{b40}")),
    "cloudflare": ("CLOUDFLARE_API_TOKEN", _form("{s40}")),
    "datadog": ("DD_API_KEY", _form("{h32}")),
    "datadog app": ("dd_application_key", _form("{h40}")),
    "okta": ("okta_api_token", _form("00{s40}")),
    "cohere": ("COHERE_API_KEY", _form("{a40}")),
    "mistral": ("mistralApiKey", _form("{a32}")),
    "azure openai": ("AZURE_OPENAI_API_KEY", _form("{h32}")),
    "twilio auth": ("TWILIO_AUTH_TOKEN", _form("{h32}")),
    "heroku uuid": ("HEROKU_API_KEY", lambda r: str(uuid.UUID(int=r.getrandbits(128)))),
    "pagerduty": ("pagerduty_api_key", _form("{s20}")),
    "algolia": ("algolia-api-key", _form("{h32}")),
    "password": ("password", _form("{a9}")),
    "db password": ("DB_PASSWORD", _form("{a5}!#{a4}")),
    "spring": ("spring.datasource.password", _form("{a12}")),
    "camel": ("dbPassword", _form("{a12}")),
    "passphrase": ("passphrase", _form("{a14}")),
    "client secret": ("client_secret", _form("{s32}")),
    "refresh token": ("refresh_token", _form("{s48}")),
    "session token": ("sessionToken", _form("{a48}")),
    "private key": ("private_key", _form("{h64}")),
    "webhook secret": ("webhook_secret", _form("{h40}")),
    "token": ("token", _form("{a24}1b2")),
    "secret": ("SECRET", _form("{a24}1b2")),
}
NAMED_CONTEXTS = (
    "{name}={value}",
    "export {name}='{value}'",
    "{name}: {value}",
    '{"a": 1, "{name}": "{value}", "b": 2}',
    '{name} = "{value}"',
    "<{name}>{value}</{name}>",
    "run --{name} {value} now",
    "run --{name}={value}",
    'line\n  {name}: "{value}"\nline',
    "https://example.com/cb?{name}={value}&state=1",
    "{name} => '{value}',",
)


def _basic(rng: random.Random) -> str:
    return base64.b64encode(f"ada:{some(rng, ALNUM, 12)}".encode()).decode()


def _pem(kind: str) -> Callable[[random.Random], str]:
    def make(rng: random.Random) -> str:
        body = "\n".join(some(rng, ALNUM + "+/", 64) for _ in range(4))
        return f"-----BEGIN {kind}-----\n{body}\n-----END {kind}-----"

    return make


def luhn(start: str, length: int, rng: random.Random) -> str:
    """A card's number with these first digits and the right check digit."""
    digits = [int(char) for char in start] + [rng.randrange(10) for _ in range(length - len(start) - 1)]
    total = sum(d if i % 2 else sum(divmod(d * 2, 10)) for i, d in enumerate(reversed(digits)))
    return "".join(map(str, [*digits, -total % 10]))


def iban(country: str, length: int, rng: random.Random) -> str:
    """An account number with the right check digits."""
    account = "".join(rng.choice(string.digits) for _ in range(length - 4))
    number = "".join(str(int(char, 36)) for char in f"{account}{country}00")
    return f"{country}{98 - int(number) % 97:02}{account}"


# (kind, text with "{}" for the secret, secret)
OTHERS: dict[str, tuple[Callable[[random.Random], str], tuple[str, ...]]] = {
    "basic": (
        _basic,
        (
            "Authorization: Basic {}",
            "-H 'authorization: basic {}'",
            '{"Authorization": "Basic {}"}',
            "got Basic {} back",
            "Proxy-Authorization: Basic {}\r\n",
        ),
    ),
    "bearer": (
        _form("{s40}"),
        (
            "Authorization: Bearer {}",
            "-H 'authorization: bearer {}'",
            '{"Authorization": "Bearer {}"}',
            "use Bearer {} here",
            "Bearer {}",
        ),
    ),
    "database url": (
        _form("{a12}"),
        (
            "postgres://ada:{}@db.example.com/x",
            "redis://:{}@10.0.0.1:6379/0",
            "mongodb+srv://u:{}@c.example.net",
            "amqp://guest:{}@mq:5672",
            "DATABASE_URL=mysql://root:{}@localhost/app",
        ),
    ),
    "password with signs": (
        lambda r: some(r, ALNUM, 5) + "@" + some(r, ALNUM, 5),
        (
            "postgres://ada:{}@db.example.com/x",
            "redis://:{}@cache:6379",
            "https://ada:{}@git.example.com/r.git",
            "ftp://u:{}@files.example.com",
            "see mysql://root:{}@localhost/app, please",
        ),
    ),
    "password with slash": (
        lambda r: some(r, ALNUM, 5) + "/" + some(r, ALNUM, 5),
        (
            "postgres://ada:{}@db.example.com/x",
            "redis://:{}@cache:6379",
            "mysql://root:{}@localhost/app",
            "amqp://guest:{}@mq:5672",
            "mongodb://u:{}@h/db",
        ),
    ),
    "password with spaces": (
        lambda r: f"{some(r, LOWER, 6)} horse {some(r, LOWER, 6)}",
        ('password: "{}"', "PASSWORD='{}'", '{"password": "{}"}', 'login --password "{}"', 'pwd = "{}"'),
    ),
    "curl": (
        _form("{a12}"),
        (
            "curl -u ada:{} https://example.com",
            "curl --user ada:{} x",
            "curl -u 'ada:{}' x",
            'curl --user "ada:{}" x',
            "wget --password={} x",
        ),
    ),
    "cookie": (
        _form("{a32}"),
        (
            "Cookie: session={}",
            "Set-Cookie: sid={}; HttpOnly",
            "cookie: a=b; auth={}",
            "-H 'Cookie: s={}'",
            '{"Cookie": "s={}"}',
        ),
    ),
    "azure sas": (
        _form("{a43}%3D"),
        (
            "https://a.blob.core.windows.net/c?sv=2022-11-02&sig={}",
            "?sp=r&sig={}&se=2025",
            "see https://a.blob.core.windows.net/c/f.txt?sv=1&sr=b&sig={} now",
            '"https://x.example.com/?sig={}"',
            "SAS: ?sig={}",
        ),
    ),
    "slack webhook": (
        _form("{a24}"),
        tuple(
            c.replace("{}", "https://hooks.slack.com/services/T0ABCDEFG/B0ABCDEFG/{}")
            for c in KEY_CONTEXTS[:5]
        ),
    ),
    "e-mail": (
        lambda r: f"{some(r, LOWER, 6)}.lovelace@example.co.uk",
        ("{}", "mail {}.", "Ada <{}>", '{"mail": "{}"}', "mailto:{}?subject=x", "an,{},44"),
    ),
    "card": (
        lambda r: luhn(r.choice(["4", "51", "55", "2221", "6011"]), 16, r),
        ("{}", "paid with {}.", "card: {}", '{"card": "{}"}', "no {} exp 11/27"),
    ),
    "grouped card": (
        lambda r: (lambda n: f"{n[:4]} {n[4:8]} {n[8:12]} {n[12:]}")(luhn("4", 16, r)),
        ("{}", "paid with {}.", "card: {}", '{"card": "{}"}', "no {} exp 11/27"),
    ),
    "iban": (
        lambda r: iban(*r.choice([("DE", 22), ("FR", 27), ("ES", 24)]), r),
        ("{}", "to {}.", "IBAN: {}", '{"iban": "{}"}', "from {} to me"),
    ),
}
for _kind in (
    "RSA PRIVATE KEY",
    "EC PRIVATE KEY",
    "OPENSSH PRIVATE KEY",
    "PRIVATE KEY",
    "PGP PRIVATE KEY BLOCK",
    "ENCRYPTED PRIVATE KEY",
):
    OTHERS[_kind] = (_pem(_kind), ("{}", "key:\n{}\nend", "'{}'", "<key>{}</key>", "a {}"))
PHONES = {
    "international": (
        "+44 20 7946 0958",
        "+49 30 901820",
        "+33 1 42 68 53 00",
        "+1 202-555-0143",
        "+81 3-1234-5678",
        "+34 912 345 678",
        "+39 06 6982 1234",
        "+31 20 123 4567",
        "+61 2 9374 4000",
        "+86 10 1234 5678",
        "+91 22 2778 2778",
        "+55 11 2345-6789",
        "+46 8 123 456 78",
        "+41 44 668 18 00",
        "+48 22 123 45 67",
        "+351 21 123 4567",
        "+45 32 12 34 56",
        "+442079460958",
    ),
    "national": (
        "020 7946 0958",
        "(030) 901820",
        "030 901820-12",
        "01 42 68 53 00",
        "(202) 555-0143",
        "202-555-0143",
        "202.555.0143",
        "03-1234-5678",
        "06 6982 1234",
        "020 123 4567",
        "(02) 9374 4000",
        "022 2778 2778",
        "08-123 456 78",
        "044 668 18 00",
        "07911 123456",
        "0151 23456789",
        "0171/1234567",
        "01 23456789",
    ),
    "labelled": (
        "912 345 678",
        "22 123 45 67",
        "32 12 34 56",
        "2025550143",
        "211234567",
        "55 5123 4567",
        "6123 4567",
        "021 123 4567",
    ),
}
PHONE_CONTEXTS = ("call {} today", "Tel: {}", "phone {}", 'phone: "{}"', "Mobile {}, please")
FREE_PHONE_CONTEXTS = ("{}", "reach me at {}.", "Ada ({}) said so", "a;{};b", "Ada Lovelace, {}")


def planted(seed: int = 0) -> Iterator[Planted]:
    """Every kind in each of its contexts, twice."""
    rng = random.Random(seed)
    for _ in range(2):
        for kind, make in KEYS.items():
            for context in KEY_CONTEXTS:
                key = make(rng)
                yield Planted(kind, context.replace("{}", key), key.partition("=")[2] or key)
        for kind, (name, make) in NAMED_KEYS.items():
            for context in NAMED_CONTEXTS:
                value = make(rng)
                yield Planted(kind, context.replace("{name}", name).replace("{value}", value), value)
        for kind, (make, contexts) in OTHERS.items():
            for context in contexts:
                secret = make(rng)
                shown = context.replace("{}", secret)
                yield Planted(kind, shown, secret.split("\n")[1] if "\n" in secret else secret)
    for kind, numbers in PHONES.items():
        for number in numbers:
            for context in (*PHONE_CONTEXTS, *(() if kind == "labelled" else FREE_PHONE_CONTEXTS)):
                yield Planted(f"{kind} phone", context.replace("{}", number), number)
