"""Routes of the page: its HTML, with a policy that lets the browser load nothing from elsewhere, script and style."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ...evaluation.report.style import STYLE
from ..keys import KeyStore

__all__ = ["router"]

_FOLDER = Path(__file__).parent
_TEMPLATES = Environment(
    loader=FileSystemLoader(_FOLDER / "templates"), autoescape=True, undefined=StrictUndefined
)
# Texts of users are shown, so no script but the package's own may run, and no other site may frame or be sent anything.
_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-cache",
}

# In this order: constants are there before what uses them. Together they are one script.
_SCRIPTS = (
    "base", "api", "views", "jobs", "new_job", "job", "scorecard", "files", "models", "keys", "playground", "start",
)  # fmt: skip

router = APIRouter()


@router.get("/")
def page(request: Request) -> HTMLResponse:
    """The page, without any data of users: its script asks for them with the key."""
    store: KeyStore = request.app.state.keys
    html = _TEMPLATES.get_template("page.html").render(keys_required=store.are_required)
    return HTMLResponse(html, headers=_HEADERS)


@router.get("/page/app.js")
def script() -> Response:
    """The page's script."""
    files = (_FOLDER / "static" / "script" / f"{name}.js" for name in _SCRIPTS)
    return _asset("\n".join(file.read_text(encoding="utf-8") for file in files), "text/javascript")


@router.get("/page/style.css")
def style() -> Response:
    """The page's style: that of reports, and what the page has beside it."""
    return _asset(STYLE + (_FOLDER / "static" / "page.css").read_text(encoding="utf-8"), "text/css")


def _asset(text: str, media_type: str) -> Response:
    return Response(text, media_type=f"{media_type}; charset=utf-8", headers=_HEADERS)
