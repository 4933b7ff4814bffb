"""SVG pictures, drawn by hand: before and after, the loss curve. Text and bars only, no script."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from .table import headline_fields, percent

if TYPE_CHECKING:
    from ..score.metrics import Interval
    from ..scorecard import Scorecard

__all__ = ["COLOURS", "bar_groups", "learning_picture", "loss_curve", "picture_of"]

COLOURS = ("#8a8f98", "#c98a1b", "#2f7fd1", "#1f9d68", "#9a5fc9", "#d1495b")
"""One per system, in order; each has a contrast of at least 3:1 on white and on #14171c."""

_FONT = "font-family='system-ui,-apple-system,Segoe UI,Roboto,Helvetica,Arial,sans-serif'"
_BAR, _GAP, _WIDTH = 15, 4, 400


def bar_groups(card: Scorecard) -> list[tuple[str, dict[str, Interval]]]:
    """(label, system -> rate with its interval) for each group of bars in the picture."""
    metrics = {"schema_valid": "schema valid", "exact_match": "exact match"}
    first = next(iter(card.systems.values()))
    for path in headline_fields(card):
        metrics[f"fields.{path}"] = f"{path} F1" if first.fields[path].f1 is not None else path
    return [
        (label, {name: score.intervals[metric] for name, score in card.systems.items()})
        for metric, label in metrics.items()
    ]


def picture_of(card: Scorecard, *, own_background: bool = True) -> str:
    """Bars of every system in valid, exact and each field; alone readable on any background."""
    groups = bar_groups(card)
    names = list(card.systems)
    legend_rows, legend = _legend(names)
    y = 12 + legend_rows * 20
    parts = [legend]
    for label, rates in groups:
        parts.append(_group(label, rates, names, y))
        y += 26 + len(names) * (_BAR + _GAP) + 6
    summary = "; ".join(
        f"{label}: " + ", ".join(f"{name} {percent(found.rate)}" for name, found in rates.items())
        for label, rates in groups
    )
    return _svg("Before and after", summary, y + 8, "".join(parts), own_background)


def _group(label: str, rates: Mapping[str, Interval], names: Sequence[str], y: int) -> str:
    """A heading and one bar per system below it."""
    short = label if len(label) <= 44 else label[:43] + "…"
    out = [f"<text class='sv-t' x='12' y='{y + 18}' font-weight='600'>{escape(short)}</text>"]
    room = _WIDTH - 12 - 56
    for at, name in enumerate(names):
        top = y + 26 + at * (_BAR + _GAP)
        found = rates[name]
        length = max(2.0, found.rate * room)
        told = f"{percent(found.rate)} (95% interval {percent(found.low)} to {percent(found.high)})"
        ends, middle = (12 + found.low * room, 12 + found.high * room), top + _BAR / 2
        out.append(
            f"<rect class='sv-r' x='12' y='{top}' width='{room}' height='{_BAR}' rx='3'/>"
            f"<rect x='12' y='{top}' width='{length:.1f}' height='{_BAR}' rx='3' fill='{colour(at)}'>"
            f"<title>{escape(name)}, {escape(label)}: {escape(told)}</title></rect>"
            f"<path class='sv-w' d='M{ends[0]:.1f} {middle - 3}v6m0 -3H{ends[1]:.1f}m0 -3v6'/>"
            f"<text class='sv-t' x='{room + 19}' y='{top + 12}'>{escape(percent(found.rate))}</text>"
        )
    return "".join(out)


def colour(at: int) -> str:
    """The colour of the system at this place in the scorecard."""
    return COLOURS[at % len(COLOURS)]


def _legend(names: Sequence[str]) -> tuple[int, str]:
    """How many rows it takes, and the drawing."""
    x, row, out = 12.0, 0, []
    for at, name in enumerate(names):
        short = name if len(name) <= 40 else name[:39] + "…"
        width = 34 + 7.2 * len(short)
        if x > 12 and x + width > _WIDTH:
            x, row = 12.0, row + 1
        y = 12 + row * 20
        out.append(
            f"<rect x='{x:.0f}' y='{y}' width='12' height='12' rx='3' fill='{colour(at)}'/>"
            f"<text class='sv-t' x='{x + 18:.0f}' y='{y + 11}'>{escape(short)}</text>"
        )
        x += width
    return row + 1, "".join(out)


def _svg(title: str, summary: str, height: int, body: str, own_background: bool) -> str:
    """A picture that carries its own colours: its own background card when it stands alone."""
    card = (
        f"<rect class='sv-b' x='.5' y='.5' width='{_WIDTH - 1}' height='{height - 1}' rx='8'/>"
        if own_background
        else ""
    )
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' role='img' viewBox='0 0 {_WIDTH} {height}' "
        f"width='{_WIDTH * 1.5:.0f}' height='{height * 1.5:.0f}' {_FONT} font-size='13' "
        f"style='max-width:100%;height:auto'>"
        f"<title>{escape(title)}. {escape(summary)}</title>{_STYLE}{card}{body}</svg>"
    )


_STYLE = (
    "<style>.sv-t{fill:#1c2128}.sv-r{fill:#8a8f98;fill-opacity:.16}.sv-b{fill:#fff;stroke:#d5d9df}"
    ".sv-w{fill:none;stroke:#1c2128;stroke-width:1.6;stroke-opacity:.75}"
    ".sv-l{fill:none;stroke-width:2}.sv-g{stroke:#8a8f98;stroke-opacity:.35}"
    "@media(prefers-color-scheme:dark){.sv-t{fill:#e8eaed}.sv-w{stroke:#fff}"
    ".sv-b{fill:#14171c;stroke:#3a414b}}</style>"
)


def loss_curve(log: Sequence[Mapping[str, Any]]) -> str:
    """Training and validation loss over steps, from rows with step, loss and maybe validation_loss."""
    lines = {
        name: [(float(row["step"]), float(row[key])) for row in log if row.get(key) is not None]
        for name, key in (("training", "loss"), ("validation", "validation_loss"))
    }
    points = [point for line in lines.values() for point in line]
    if len(points) < 2:
        return ""
    steps = max(step for step, _ in points)
    frame = _Frame(steps, 1.05 * max(loss for _, loss in points))
    names = [name for name, line in lines.items() if line]
    colours = {"training": COLOURS[2], "validation": COLOURS[1]}
    body = frame.grid("{:.2f}".format) + "".join(frame.line(lines[name], colours[name]) for name in names)
    body += (
        "<text class='sv-t' x='48' y='218'>step 0</text>"
        f"<text class='sv-t' x='{_WIDTH - 24}' y='218' text-anchor='end'>step {steps:g}</text>"
    )
    for at, name in enumerate(names):
        body += (
            f"<rect x='{48 + at * 130}' y='8' width='12' height='12' rx='3' fill='{colours[name]}'/>"
            f"<text class='sv-t' x='{66 + at * 130}' y='19'>{name} loss</text>"
        )
    ends = "; ".join(f"{n} loss from {lines[n][0][1]:.3g} to {lines[n][-1][1]:.3g}" for n in names)
    return _svg("Loss over training steps", ends, 230, body, False)


class _Frame:
    """Data coordinates, from nought to ``right`` and ``top`` -> picture coordinates of a curve."""

    def __init__(self, right: float, top: float) -> None:
        self._right, self._top = right or 1.0, top or 1.0

    def x(self, value: float) -> float:
        return 48 + value / self._right * (_WIDTH - 72)

    def y(self, value: float) -> float:
        return 198 - value / self._top * 160

    def grid(self, label: Callable[[float], str]) -> str:
        """Five lines with their values."""
        out = []
        for value in (self._top * part for part in (0.0, 0.25, 0.5, 0.75, 1.0)):
            y = self.y(value)
            out.append(f"<line class='sv-g' x1='48' x2='{_WIDTH - 24}' y1='{y:.1f}' y2='{y:.1f}'/>")
            out.append(f"<text class='sv-t' x='41' y='{y + 4:.1f}' text-anchor='end'>{label(value)}</text>")
        return "".join(out)

    def line(self, points: Sequence[tuple[float, float]], stroke: str) -> str:
        """One polyline."""
        path = " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points)
        return f"<polyline class='sv-l' points='{path}' stroke='{stroke}'/>"


def learning_picture(points: Sequence[tuple[int, Interval]], metric: str) -> str:
    """The metric over the rows trained on, with its intervals; readable on light and dark backgrounds."""
    frame = _Frame(points[-1][0], 1.0)
    x, y = frame.x, frame.y
    body = f"<text class='sv-t' x='12' y='20' font-weight='600'>{escape(metric)} by rows trained on</text>"
    body += frame.grid(percent)
    body += frame.line([(rows, found.rate) for rows, found in points], COLOURS[2])
    for rows, found in points:
        told = f"{rows} rows: {percent(found.rate)} ({percent(found.low)} to {percent(found.high)})"
        body += (
            f"<path class='sv-w' d='M{x(rows) - 3:.1f} {y(found.low):.1f}h6m-3 0V{y(found.high):.1f}m-3 0h6'/>"
            f"<circle cx='{x(rows):.1f}' cy='{y(found.rate):.1f}' r='4' fill='{COLOURS[2]}'>"
            f"<title>{escape(told)}</title></circle>"
            f"<text class='sv-t' x='{x(rows):.1f}' y='218' text-anchor='middle'>{rows}</text>"
        )
    summary = "; ".join(f"{rows} rows {percent(found.rate)}" for rows, found in points)
    return _svg("Learning curve", summary, 230, body, True)
