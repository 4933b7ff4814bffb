"""Texts that only look as if they held secrets: numbers, identifiers, program text and prose."""

from __future__ import annotations

import base64
import random
import uuid
from collections.abc import Callable, Iterator

from .secret_corpus import ALNUM, HEX, LOWER, some


def innocents(seed: int = 0) -> Iterator[str]:
    """Numbers, identifiers, program text and prose without any secret."""
    rng = random.Random(seed)
    contexts = ("{}", "Order {} was shipped.", '{"id": "{}"}', "a, {}, b", "{} | {}", "no. {};", "see ({})")
    for make in NUMBERS:
        for context in contexts:
            yield context.replace("{}", make(rng))
    yield from PROSE
    for _ in range(20):
        yield "\n".join("  ".join(f"{rng.uniform(0, 9999):10.2f}" for _ in range(6)) for _ in range(4))
        yield " ".join(str(rng.randrange(1000)) for _ in range(30))
        yield "data:image/png;base64," + base64.b64encode(rng.randbytes(300)).decode()


def _digits(length: int) -> Callable[[random.Random], str]:
    return lambda rng: str(rng.randrange(10 ** (length - 1), 10**length))


def _ean(rng: random.Random) -> str:
    start = [int(char) for char in f"4{rng.randrange(10**11):011}"]
    return "".join(map(str, start)) + str(-sum(d * (3 if i % 2 else 1) for i, d in enumerate(start)) % 10)


NUMBERS: tuple[Callable[[random.Random], str], ...] = (
    *(_digits(length) for length in range(5, 13)),
    *(lambda rng, n=length: "7" + _digits(n - 1)(rng) for length in range(13, 20)),
    _ean,
    lambda r: f"978-3-{r.randrange(100, 999)}-{r.randrange(10000, 99999)}-{r.randrange(10)}",
    lambda r: f"978{r.randrange(10**9, 10**10)}",
    lambda r: str(1_700_000_000 + r.randrange(10**8)),
    lambda r: str(1_700_000_000_000 + r.randrange(10**10)),
    lambda r: str(uuid.UUID(int=r.getrandbits(128))),
    lambda r: some(r, HEX, 40),
    lambda r: some(r, HEX, 64),
    lambda r: some(r, HEX, 32),
    lambda r: some(r, HEX, 7),
    lambda r: f"sha256:{some(r, HEX, 64)}",
    lambda r: f"2{r.randrange(1000, 9999)}.{r.randrange(10, 99)}",
    lambda r: f"{r.randrange(1, 999)},{r.randrange(100, 999)},{r.randrange(100, 999)}.{r.randrange(10, 99)}",
    lambda r: (
        f"{r.randrange(1, 999)}.{r.randrange(100, 999)}.{r.randrange(100, 999)},{r.randrange(10, 99)} EUR"
    ),
    lambda r: f"20{r.randrange(10, 30)}-0{r.randrange(1, 9)}-{r.randrange(10, 28)}",
    lambda r: f"0{r.randrange(1, 9)}.{r.randrange(10, 12)}.20{r.randrange(10, 30)}",
    lambda r: f"0{r.randrange(1, 9)}/{r.randrange(10, 28)}/20{r.randrange(10, 30)}",
    lambda r: (
        f"20{r.randrange(10, 30)}-01-0{r.randrange(1, 9)}T0{r.randrange(1, 9)}:{r.randrange(10, 59)}:00Z"
    ),
    lambda r: f"20{r.randrange(10, 20)}-20{r.randrange(20, 30)}",
    lambda r: f"{r.randrange(1000, 1200)}-{r.randrange(1200, 1400)}",
    lambda r: ".".join(str(r.randrange(256)) for _ in range(4)),
    lambda r: f"{r.randrange(9)}.{r.randrange(99)}.{r.randrange(99)}rc1",
    lambda r: f"{r.uniform(-90, 90):.6f}, {r.uniform(-180, 180):.6f}",
    lambda r: f"#{some(r, HEX, 6)}",
    lambda r: f"ORD-{r.randrange(10**9, 10**10)}",
    lambda r: f"{r.randrange(10**4, 10**5)}-{r.randrange(10**4, 10**5)}",
    lambda r: f"doi:10.{r.randrange(1000, 9999)}/{some(r, LOWER, 8)}.{r.randrange(2000, 2025)}",
    lambda r: f"ftjob-{some(r, ALNUM, 24)}",
    lambda r: f"chatcmpl-{some(r, ALNUM, 29)}",
    lambda r: f"arXiv:2{r.randrange(100, 400)}.{r.randrange(10000, 99999)}",
    lambda r: f"0x{some(r, HEX, 16)}",
    lambda r: f"{r.randrange(100, 999)} {r.randrange(100, 999)} {r.randrange(100, 999)}",
    lambda r: f"{r.randrange(1000, 9999)} {r.randrange(1000, 9999)}",
    lambda r: f"-{r.uniform(0, 1):.15f}",
    lambda r: f"{r.uniform(0, 1):.17e}",
    lambda r: f"{r.randrange(1, 99)}:{r.randrange(10, 59)}:{r.randrange(10, 59)}.{r.randrange(100, 999)}",
    lambda r: f"article {r.randrange(100, 999)}-{r.randrange(10, 99)}-{r.randrange(1000, 9999)}",
    lambda r: f"00{r.randrange(10**6, 10**7)}",
    lambda r: f"pp. {r.randrange(100, 999)}-{r.randrange(1000, 1999)}",
)
PROSE = (
    "token = next(tokens)",
    "for token in tokenizer.encode(text):",
    "self.password = password",
    "api_key=api_key,",
    "api_key = os.environ['OPENAI_API_KEY']",
    "password=settings.database.password",
    "def login(user: str, password: str) -> bool:",
    "Use the password reset link on the page.",
    "The password: required, at least eight characters.",
    "token: walking",
    "the token is the key to the password of the secret",
    "Basic understanding of authentication is enough.",
    "Bearer authentication is described in RFC 6750.",
    "a bearer of good news arrived",
    "secret ballot and secret sauce",
    "risk-management of task-oriented disk-based systems",
    "sk-learn-pipeline-of-several-steps",
    "max_tokens=4096, stop_token_id=2",
    "the key: a list of 12 names",
    "author: Smith, authority: none",
    "compass: north, passing: 12 of 13",
    "pass: 12, fail: 3",
    "@decorator def f(): ...",
    "ssh git@github.com is a host",
    "git clone ssh://git@example.com/r.git",
    "http://example.com:8080/a?b=c",
    "networkx.algorithms.shortest_paths(G, source=None) -> 3.14159265358979",
    "Smith et al., 2019-2021, pages 1234-1250, doi:10.1000/182",
    "primary_key = customer_identifier",
    "sort_key=2, group_key=region",
    "token_count: 128, tokens: 4096",
    "tokens per second: 1200",
    "the secret garden, by F. H. Burnett (1911)",
    "password: string",
    '"password": {"type": "string"}',
    "password=${DB_PASSWORD}",
    "password: <your password>",
    "password: {{ vault_password }}",
    "api_key=YOUR.KEY.HERE",
    "x = y[0] + z[1:3] * 0.5",
    "cookie: a small flat sweet cake",
    "The cookie policy has 3 parts.",
    "call 3 times, then 4 times",
    "ring 1 of 12345",
    "mobile 5G, fixed 1000 Mbit",
    "phone 12 pro, 128 GB",
    "fax machines of 1987",
    "dial 112",
    "call_id: 3, call: 17 of 24",
    "SELECT token FROM words WHERE pos = 'VERB'",
    '{"token": "walking", "lemma": "walk", "pos": "VERB"}',
    '{"secret": false, "pass": true}',
    '{"key": "title", "value": "Echoes"}',
    "version 1.2.3-alpha.1+build.5",
    "C:\\Users\\ada\\pass\\file.txt",
    "/usr/share/keys/public.pem",
    "-----BEGIN PUBLIC KEY-----\nMIIBIjANBgkq\n-----END PUBLIC KEY-----",
    "-----BEGIN CERTIFICATE-----\nMIIBIjANBgkq\n-----END CERTIFICATE-----",
    "assert response.status_code == 401",
    "raise ValueError('no password given')",
    "Authorization: none",
    "authorization: required",
    "lambda key: key.lower()",
    "row['token']",
    "ACADEMIC, APPLICATION and APDATA are words",
    "AKCENT is a brand",
    "SK: Slovakia; AC: alternating current",
    "re_compile_pattern_of_words",
    "key-value store, key-word search",
    "pattern.match(text)",
    "fig_one_of_the_paper_shows_it_all_at_once_here",
    "he said: pass the salt",
    "passport: valid until 2030",
    "passenger: 12A",
    "tokenizer: bert-base-uncased",
    "secretary: J. Smith",
    "a hundred and twenty (120) of 4,000",
    "ISO 8601:2004, RFC 2616, IEEE 802.11",
    "CAS 7732-18-5",
    "ISSN 1234-5679",
    "PMID: 31452104",
    "Room 020, floor 3",
    "0 1 2 3 4 5 6 7 8 9 10 11",
    "score 0.95 0.93 0.91",
    "07:30 08:45 10:15",
    "01 02 03 04 05",
    "ratio 1:100000",
    "width=1024 height=0768",
    "chapter 12, verse 3-17",
    "3-0 6-4 7-6",
    "SKU 0451-2234",
    "1/2 cup, 3/4 tsp",
    "£1,250.00 - £3,400.50",
    "api_key: Optional[str] = None",
    "password: Annotated[str, Form()]",
    "password: varchar(255) not null",
    "password = sha256_hash(password)",
    "OpenAI(api_key=OPENAI_API_KEY)",
    "PWD=/home/ada/project",
    "$ pwd /home/ada/src",
    "private_key: path/to/key.pem",
    'fetch(url, {credentials: "same-origin"})',
    "credentials: include",
    '{"name": "A. Lee", "credentials": "MD, PhD"}',
    "credential: Bachelor of Science",
    '{"token": "COVID-19-related", "pos": "ADJ"}',
    "PASS: tests/auth/test_login.py::test_1",
    "Marketing authorization: EU/1/20/1528/001",
    "Password is Sha-256-hashed.",
    "10.1016/j.cell.2020.02.058",
    "Steuernummer 021/815/08150",
    "01 02 03 04 05 06",
    "010 020 030 040",
    "640 480 1024 768",
    "100 200 3000",
    "pages 123 456 7890",
    "100.000.0000",
    "score 110-120-1300",
    "logo@2x.png",
    "https://example.com/search?key=release-date-desc",
    "https://example.com/?code=en-US-english-uk",
    "mysql -u root -p mydb",
    "docker run mysql -p 3306:3306",
    "pk_user_account_id_1",
    "sk-2024-01-05-order-12345",
    "glft-annual-report-2024",
    "class APEnvironmentManager ",
    "z2pw\nNcRwYYGPGYdoikUKfxPnra8P2d3NH/AUa3g86MNV9b+YF6oVqzIHvgT0MWU/",
    "A" * 76,
)
