"""SVG charts: bars before and after, loss curve, learning curve. Shapes and text only, no script."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..results import ScoreTable
from ..score.metrics import Interval
from ..score.trust_figures import ReliabilityBin, RiskCoverage
from .markup import escape
from .text import headline_fields, percent

__all__ = [
    "COLOURS",
    "bar_groups",
    "coverage_curve",
    "learning_picture",
    "loss_curve",
    "picture_of",
    "reliability_diagram",
]

COLOURS = ("#8a8f98", "#c98a1b", "#2f7fd1", "#1f9d68", "#9a5fc9", "#d1495b")
"""One per system, in order; each has a contrast of at least 3:1 on white and on #14171c."""

_FONT = "font-family='system-ui,-apple-system,Segoe UI,Roboto,Helvetica,Arial,sans-serif'"
# Sizes in the picture's own units, all chosen by eye; the picture is shown at _SCALE pixels a unit.
_WIDTH, _SCALE, _FONT_SIZE = 400, 1.5, 13
_MARGIN, _BOTTOM = 12, 8  # left of and above everything; below the last bar
_RADIUS = 3  # of the corners of bars and swatches
_TEXT_RISE = 3  # from the bottom of a line of small shapes up to the text's baseline
_LEGEND_LINE, _SWATCH, _SWATCH_GAP = 20, 12, 6  # height of a line; a colour's square and the room after it
_LETTER, _ENTRY_GAP = 7.8, 16  # width of an average letter; room after a legend's entry
_HEADING, _HEADING_BASELINE, _GROUP_GAP = 26, 18, 6  # above a group's bars; below them
_BAR, _BAR_GAP, _SHORTEST_BAR = 15, 4, 2.0
_VALUE_WIDTH, _VALUE_GAP = 56, 7  # room for the percentage right of a bar; from the bar to it
_CAP = 3  # half the length of a whisker's end
_LABEL_LETTERS, _NAME_LETTERS = 44, 40  # what fits the width
_CURVE_HEIGHT = 230  # of the whole picture of a curve
_PLOT_LEFT, _PLOT_RIGHT = 48, 24  # margins beside a curve's plot
_PLOT_BOTTOM, _PLOT_HEIGHT = 198, 160
_TICK_GAP, _TICK_DROP = 7, 4  # from the plot to its values; from a grid line to its value's baseline
_TITLE_BASELINE, _AXIS_BASELINE = 20, 218  # of the text above and below the plot
_CURVE_LEGEND_Y, _CURVE_ENTRY = 8, 130  # top of a curve's legend; width of an entry
_POINT = 4  # radius
_HEADROOM = 1.05  # of the loss curve's top over its greatest loss
_GRID = (0.0, 0.25, 0.5, 0.75, 1.0)


def bar_groups(table: ScoreTable) -> list[tuple[str, dict[str, Interval]]]:
    """(label, system -> rate with its interval) for each group of bars in the picture."""
    metrics = {"schema_valid": "schema valid", "exact_match": "exact match"}
    metrics |= {f"fields.{path}": label for path, label in headline_fields(table).items()}
    return [
        (label, {name: score.intervals[metric] for name, score in table.systems.items()})
        for metric, label in metrics.items()
    ]


def picture_of(table: ScoreTable, *, own_background: bool = True) -> str:
    """Bars of every system in valid, exact and each field.

    With ``own_background`` the picture is readable on any page; without, it takes the page's background.
    """
    groups = bar_groups(table)
    names = list(table.systems)
    legend_lines, legend = _legend(names)
    y = _MARGIN + legend_lines * _LEGEND_LINE
    parts = [legend]
    for label, rates in groups:
        parts.append(_group(label, rates, names, y))
        y += _HEADING + len(names) * (_BAR + _BAR_GAP) + _GROUP_GAP
    summary = "; ".join(
        f"{label}: " + ", ".join(f"{name} {percent(interval.rate)}" for name, interval in rates.items())
        for label, rates in groups
    )
    return _svg("Before and after", summary, y + _BOTTOM, "".join(parts), own_background)


def _group(label: str, rates: Mapping[str, Interval], names: Sequence[str], y: int) -> str:
    """A heading and one bar per system below it."""
    heading = escape(_shortened(label, _LABEL_LETTERS))
    out = [f"<text class='sv-t' x='{_MARGIN}' y='{y + _HEADING_BASELINE}' font-weight='600'>{heading}</text>"]
    room = _WIDTH - _MARGIN - _VALUE_WIDTH
    for at, name in enumerate(names):
        top = y + _HEADING + at * (_BAR + _BAR_GAP)
        rate = rates[name]
        length = max(_SHORTEST_BAR, rate.rate * room)
        shown = f"{percent(rate.rate)} (95% interval {percent(rate.low)} to {percent(rate.high)})"
        low, high = _MARGIN + rate.low * room, _MARGIN + rate.high * room
        cap_top = top + _BAR / 2 - _CAP
        out.append(
            f"<rect class='sv-r' x='{_MARGIN}' y='{top}' width='{room}' height='{_BAR}' rx='{_RADIUS}'/>"
            f"<rect x='{_MARGIN}' y='{top}' width='{length:.1f}' height='{_BAR}' rx='{_RADIUS}' fill='{colour(at)}'>"
            f"<title>{escape(name)}, {escape(label)}: {escape(shown)}</title></rect>"
            f"<path class='sv-w' d='M{low:.1f} {cap_top}v{2 * _CAP}m0 -{_CAP}H{high:.1f}m0 -{_CAP}v{2 * _CAP}'/>"
            f"<text class='sv-t' x='{_MARGIN + room + _VALUE_GAP}' y='{top + _BAR - _TEXT_RISE}'>"
            f"{escape(percent(rate.rate))}</text>"
        )
    return "".join(out)


def colour(at: int) -> str:
    """The colour of the system at this place in the scorecard."""
    return COLOURS[at % len(COLOURS)]


def _legend(names: Sequence[str]) -> tuple[int, str]:
    """(number of lines, drawing) of the systems' colours and names, wrapped to the width."""
    x, line, out = float(_MARGIN), 0, []
    for at, name in enumerate(names):
        short = _shortened(name, _NAME_LETTERS)
        width = _SWATCH + _SWATCH_GAP + _ENTRY_GAP + _LETTER * len(short)
        if x > _MARGIN and x + width > _WIDTH:
            x, line = float(_MARGIN), line + 1
        out.append(_legend_entry(x, _MARGIN + line * _LEGEND_LINE, short, colour(at)))
        x += width
    return line + 1, "".join(out)


def _legend_entry(x: float, y: int, text: str, fill: str) -> str:
    return (
        f"<rect x='{x:.0f}' y='{y}' width='{_SWATCH}' height='{_SWATCH}' rx='{_RADIUS}' fill='{fill}'/>"
        f"<text class='sv-t' x='{x + _SWATCH + _SWATCH_GAP:.0f}' y='{y + _SWATCH - 1}'>{escape(text)}</text>"
    )


def _shortened(text: str, letters: int) -> str:
    return text if len(text) <= letters else text[: letters - 1] + "…"


def _svg(title: str, summary: str, height: int, body: str, own_background: bool) -> str:
    """A picture with its own colours and, to stand alone, its own background."""
    card = (
        f"<rect class='sv-b' x='.5' y='.5' width='{_WIDTH - 1}' height='{height - 1}' rx='8'/>"
        if own_background
        else ""
    )
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' role='img' viewBox='0 0 {_WIDTH} {height}' "
        f"width='{_WIDTH * _SCALE:.0f}' height='{height * _SCALE:.0f}' {_FONT} font-size='{_FONT_SIZE}' "
        f"style='max-width:100%;height:auto'>"
        f"<title>{escape(title)}. {escape(summary)}</title>{_STYLE}{card}{body}</svg>"
    )


_STYLE = (
    "<style>.sv-t{fill:#1c2128}.sv-r{fill:#8a8f98;fill-opacity:.16}.sv-b{fill:#fff;stroke:#d5d9df}"
    ".sv-w{fill:none;stroke:#1c2128;stroke-width:1.6;stroke-opacity:.75}"
    ".sv-l{fill:none;stroke-width:2}.sv-a{stroke:none;fill-opacity:.18}.sv-g{stroke:#8a8f98;stroke-opacity:.35}"
    "@media(prefers-color-scheme:dark){.sv-t{fill:#e8eaed}.sv-w{stroke:#fff}"
    ".sv-b{fill:#14171c;stroke:#3a414b}}</style>"
)


def loss_curve(log: Sequence[Mapping[str, Any]]) -> str:
    """Training and validation loss over steps; empty for fewer than two points.

    ``log``: rows with step, loss and maybe validation_loss.
    """
    curves = {
        name: [(float(row["step"]), float(row[key])) for row in log if row.get(key) is not None]
        for name, key in (("training", "loss"), ("validation", "validation_loss"))
    }
    points = [point for curve in curves.values() for point in curve]
    if len(points) < 2:
        return ""
    steps = max(step for step, _ in points)
    frame = _Frame(steps, _HEADROOM * max(loss for _, loss in points))
    drawn = {name: curve for name, curve in curves.items() if curve}
    colours = {"training": COLOURS[2], "validation": COLOURS[1]}
    body = frame.grid("{:.2f}".format)
    body += "".join(frame.line(curve, colours[name]) for name, curve in drawn.items())
    body += (
        f"<text class='sv-t' x='{_PLOT_LEFT}' y='{_AXIS_BASELINE}'>step 0</text>"
        f"<text class='sv-t' x='{_WIDTH - _PLOT_RIGHT}' y='{_AXIS_BASELINE}' text-anchor='end'>"
        f"step {steps:g}</text>"
    )
    for at, name in enumerate(drawn):
        x = _PLOT_LEFT + at * _CURVE_ENTRY
        body += _legend_entry(x, _CURVE_LEGEND_Y, f"{name} loss", colours[name])
    ends = "; ".join(f"{n} loss from {curve[0][1]:.3g} to {curve[-1][1]:.3g}" for n, curve in drawn.items())
    return _svg("Loss over training steps", ends, _CURVE_HEIGHT, body, False)


class _Frame:
    """A curve's plot: maps data coordinates, from 0 to ``right`` and ``top``, to the picture's."""

    def __init__(self, right: float, top: float) -> None:
        self._right, self._top = right or 1.0, top or 1.0

    def x(self, value: float) -> float:
        return _PLOT_LEFT + value / self._right * (_WIDTH - _PLOT_LEFT - _PLOT_RIGHT)

    def y(self, value: float) -> float:
        return _PLOT_BOTTOM - value / self._top * _PLOT_HEIGHT

    def grid(self, label: Callable[[float], str]) -> str:
        """Horizontal lines with their values."""
        out = []
        for value in (self._top * part for part in _GRID):
            y = self.y(value)
            out.append(
                f"<line class='sv-g' x1='{_PLOT_LEFT}' x2='{_WIDTH - _PLOT_RIGHT}' y1='{y:.1f}' y2='{y:.1f}'/>"
                f"<text class='sv-t' x='{_PLOT_LEFT - _TICK_GAP}' y='{y + _TICK_DROP:.1f}' text-anchor='end'>"
                f"{label(value)}</text>"
            )
        return "".join(out)

    def line(self, points: Sequence[tuple[float, float]], stroke: str) -> str:
        """One polyline."""
        path = " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points)
        return f"<polyline class='sv-l' points='{path}' stroke='{stroke}'/>"


def learning_picture(points: Sequence[tuple[int, Interval]], metric: str) -> str:
    """The metric over the rows trained on, with its intervals; readable on light and dark backgrounds."""
    frame = _Frame(points[-1][0], 1.0)
    x, y = frame.x, frame.y
    title = f"{escape(metric)} by rows trained on"
    body = f"<text class='sv-t' x='{_MARGIN}' y='{_TITLE_BASELINE}' font-weight='600'>{title}</text>"
    body += frame.grid(percent)
    body += frame.line([(rows, interval.rate) for rows, interval in points], COLOURS[2])
    for rows, rate in points:
        shown = f"{rows} rows: {percent(rate.rate)} ({percent(rate.low)} to {percent(rate.high)})"
        whisker = f"M{x(rows) - _CAP:.1f} {y(rate.low):.1f}h{2 * _CAP}m-{_CAP} 0V{y(rate.high):.1f}"
        body += (
            f"<path class='sv-w' d='{whisker}m-{_CAP} 0h{2 * _CAP}'/>"
            f"<circle cx='{x(rows):.1f}' cy='{y(rate.rate):.1f}' r='{_POINT}' fill='{COLOURS[2]}'>"
            f"<title>{escape(shown)}</title></circle>"
            f"<text class='sv-t' x='{x(rows):.1f}' y='{_AXIS_BASELINE}' text-anchor='middle'>{rows}</text>"
        )
    summary = "; ".join(f"{rows} rows {percent(rate.rate)}" for rows, rate in points)
    return _svg("Learning curve", summary, _CURVE_HEIGHT, body, True)


def reliability_diagram(bins: Sequence[ReliabilityBin], stroke: str) -> str:
    """Share of right answers over the probability of each bin; exact probabilities are on the diagonal."""
    frame = _Frame(1.0, 1.0)
    ends = f"x1='{frame.x(0):.1f}' y1='{frame.y(0):.1f}' x2='{frame.x(1):.1f}' y2='{frame.y(1):.1f}'"
    body = _plot_title("Right answers by probability") + frame.grid(percent)
    body += f"<line class='sv-g' {ends}/>" + _percent_axis(frame, "probability")
    for part in bins:
        shown = f"{part.n} answers: probability {percent(part.probability)}, right {percent(part.right)}"
        body += (
            f"<circle cx='{frame.x(part.probability):.1f}' cy='{frame.y(part.right):.1f}' r='{_POINT}' "
            f"fill='{stroke}'><title>{escape(shown)}</title></circle>"
        )
    pairs = "; ".join(f"at {percent(part.probability)} {percent(part.right)} right" for part in bins)
    return _svg("Reliability diagram", pairs, _CURVE_HEIGHT, body, False)


def coverage_curve(curve: Sequence[RiskCoverage], stroke: str) -> str:
    """Accuracy, with its 95% interval, over the share of the answers given, the surest first."""
    frame = _Frame(1.0, 1.0)
    rates = [(point.coverage, point.accuracy) for point in curve]
    edge = [(share, rate.high) for share, rate in rates] + [(share, rate.low) for share, rate in rates[::-1]]
    band = " ".join(f"{frame.x(share):.1f},{frame.y(rate):.1f}" for share, rate in edge)
    body = _plot_title("Accuracy by share of answers given") + frame.grid(percent)
    body += f"<polygon class='sv-a' points='{band}' fill='{stroke}'/>"
    body += frame.line([(share, rate.rate) for share, rate in rates], stroke)
    body += _percent_axis(frame, "share of the answers, the surest first")
    pairs = "; ".join(f"{percent(share)} given, {percent(rate.rate)} right" for share, rate in rates[::4])
    return _svg("Risk-coverage curve", pairs, _CURVE_HEIGHT, body, False)


def _plot_title(text: str) -> str:
    return f"<text class='sv-t' x='{_MARGIN}' y='{_TITLE_BASELINE}' font-weight='600'>{escape(text)}</text>"


def _percent_axis(frame: _Frame, label: str) -> str:
    """The ends of a horizontal axis from 0 to 100%, and what it shows."""
    places = ((0.0, "start", "0%"), (0.5, "middle", label), (1.0, "end", "100%"))
    return "".join(
        f"<text class='sv-t' x='{frame.x(at):.1f}' y='{_AXIS_BASELINE}' text-anchor='{anchor}'>{escape(text)}</text>"
        for at, anchor, text in places
    )
