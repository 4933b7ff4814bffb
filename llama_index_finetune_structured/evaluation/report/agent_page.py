"""The page of an agents' comparison: figures, tools, differences, and runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..run.agent_run import AgentCall, AgentRun, AgentTurn
from ..score.agent_scores import AgentRow, AgentScore, AgentTable, ToolScore
from ..score.tool_calls import ScoredAgentRun, ScoredCall
from .agent_text import LABELS, agent_verdict, gold_figures, main_agent, measured
from .cases import cut_text, mark, marked_object
from .html_tables import html_table, rate_with_interval, signed_interval
from .markup import escape
from .page import facts_list, html_document, section
from .text import mean_text, percent
from .trust_notes import TrustNotes

__all__ = ["agent_figures", "agent_page"]

_CASES = 10  # chosen: as many as are read
_TEXT_CHARACTERS = 600  # chosen: of a text, result or error
_MOST_TURNS = 30  # chosen: of a run that never ended
_LEGEND = (
    "<p class='quiet'>Right: the same calls with all arguments right, and the final answer. Calls are aligned with "
    "gold's in order; parallel calls have none. Calls F1, needless and missing: by the tool's name. Arguments: of the "
    "aligned calls. Valid: the tool exists and the arguments fit its schema. Failed: of the calls that were made. A "
    "run that did not end counts as wrong, its calls as far as it went.</p>"
)


def agent_page(table: AgentTable, title: str) -> str:
    """The whole page; everything that came from data is escaped."""
    main = main_agent(table)
    facts: dict[str, Any] = {
        "examples": len(table.rows),
        "documents": len({row.gold.document_id for row in table.rows if row.gold.document_id}) or "unknown",
        "gold calls": sum(len(row.gold.calls) for row in table.rows),
        "created": table.created,
    }
    sections = [
        section("Figures", agent_figures(table) + _LEGEND),
        section("Tool by tool", _tools(table)),
        section("Against the others", _differences(table)),
        section(f"Runs side by side, the worst of “{main}” first", _cases(table, main)),
        section("About this run", facts_list(facts | table.settings)),
    ]
    return html_document(title, agent_verdict(table), table.problems(), sections)


def agent_figures(table: AgentTable) -> str:
    """One line per figure, one column per system and one for gold."""
    scores = table.systems.values()
    gold = map(mean_text, gold_figures(table), (1, 1, 0, 0))
    rows = [[LABELS[m], *(_rate(score, m) for score in scores), "–"] for m in measured(table)]
    rows += [
        ["steps a run", *(mean_text(score.steps) for score in scores), next(gold)],
        ["calls a run", *(mean_text(score.calls) for score in scores), next(gold)],
        ["tokens read a run", *(mean_text(score.prompt_tokens, 0) for score in scores), next(gold)],
        ["tokens written a run", *(mean_text(score.completion_tokens, 0) for score in scores), next(gold)],
        ["seconds a run", *(f"{score.seconds_per_run:.2f}" for score in scores), "–"],
    ]
    if any(score.reasoning_tokens for score in scores):
        thought = (mean_text(score.reasoning_tokens) for score in scores)
        rows.insert(-1, ["tokens of reasoning an answer", *thought, "–"])
    return html_table(["figure", *table.systems, "(gold)"], rows, "All systems on the same examples")


def _rate(score: AgentScore, measure: str) -> str:
    return rate_with_interval(score.rates[measure]) if measure in score.rates else "–"


def _tools(table: AgentTable) -> str:
    """One small table per tool, and one for the arguments of each."""
    names = dict.fromkeys(name for score in table.systems.values() for name in score.tools)
    parts = []
    for name in names:
        scores = {s: score.tools[name] for s, score in table.systems.items() if name in score.tools}
        rows = [[system, *_tool_figures(score)] for system, score in scores.items()]
        headings = ["system", "calls F1", "gold", "made", "needless", "missing", "valid", "exact", "failed"]
        paths = dict.fromkeys(path for score in scores.values() for path in score.arguments)
        arguments = [[path, *(_argument(score, path) for score in scores.values())] for path in paths]
        below = (
            html_table(["argument right", *scores], arguments, f"arguments of {name}") if arguments else ""
        )
        parts.append(f"<div><h3>{escape(name)}</h3>{html_table(headings, rows, name)}{below}</div>")
    return "".join(parts)


def _tool_figures(score: ToolScore) -> list[str]:
    counts = score.calls
    numbers = (
        counts.gold,
        counts.answered,
        counts.invented,
        counts.missing,
        score.valid,
        score.exact,
        score.failed,
    )
    return [percent(counts.f1) if counts.gold + counts.answered else "–", *map(str, numbers)]


def _argument(score: ToolScore, path: str) -> str:
    return percent(score.arguments[path].headline) if path in score.arguments else "–"


def _differences(table: AgentTable) -> str:
    """Every system minus the first one, and minus the teacher, but for systems of which no run took place."""
    found = {(d.system, d.against, d.metric): d for d in table.differences}
    silent = {name for name, score in table.systems.items() if score.all_calls_failed}
    pairs = [pair for pair in dict.fromkeys((s, a) for s, a, _ in found) if not {*pair} & silent]
    rows = []
    for measure in measured(table):
        known = [found.get((*pair, measure)) for pair in pairs]
        rows.append([LABELS[measure], *(signed_interval(d) if d else "–" for d in known)])
    headings = ["points (95% interval)", *(f"{system} − {against}" for system, against in pairs)]
    return html_table(headings, rows, "Differences on the same examples") if pairs else ""


def _cases(table: AgentTable, main: str) -> str:
    """The worst runs of ``main`` beside gold's and the others', worst first."""

    def badness(row: AgentRow) -> tuple[float, float]:
        run = row.runs[main]
        return float(run.is_right), run.measures["tool_calls"].f1

    rows = sorted(table.rows, key=badness)[:_CASES]
    return "".join(_case(row, at) for at, row in enumerate(rows, 1))


def _case(row: AgentRow, at: int) -> str:
    question = escape(cut_text(row.gold.question, _TEXT_CHARACTERS))
    about = f"<p class='quiet'>document {escape(row.gold.document_id)}</p>" if row.gold.document_id else ""
    shown = _shown_gold(row.gold) + "".join(_shown_run(name, run, row.gold) for name, run in row.runs.items())
    return (
        f"<article class='case'><h3>{at}. {question}</h3>{about}<div class='answers'>{shown}</div></article>"
    )


def _shown_gold(gold: AgentRun) -> str:
    turns = _turns(gold, [_plain_call(call) for call in gold.calls])
    return f"<section class='answer gold'><h4>gold</h4>{turns}</section>"


def _shown_run(name: str, scored: ScoredAgentRun, gold: AgentRun) -> str:
    run = scored.run
    kind, badge = ("good", "right") if scored.is_right else ("part", "differs")
    if run.error is not None:
        kind, badge = "bad", "did not end"
    calls = [_marked_call(*pair, gold) for pair in zip(run.calls, scored.calls, strict=True)]
    found = {call.gold for call in scored.calls}
    missing = [call for at, call in enumerate(gold.calls) if at not in found]
    body = _turns(run, calls, scored)
    body += "".join(f"<p>{mark('missing', _one_line(call))}</p>" for call in missing)
    if run.error is not None:
        body += f"<p class='error'>{escape(cut_text(run.error, _TEXT_CHARACTERS))}</p>"
    heading = f"<h4>{escape(name)} <span class='badge {kind}'>{badge}</span></h4>"
    return f"<section class='answer'>{heading}{body}</section>"


def _turns(run: AgentRun, calls: Sequence[str], scored: ScoredAgentRun | None = None) -> str:
    """The turns as a numbered list: texts, then calls as HTML; ``scored``: marks the final answer."""
    items, left = [], list(calls)
    has_hand_off = len({turn.agent for turn in run.turns}) > 1
    for at, turn in enumerate(run.turns):
        own, left = left[: len(turn.calls)], left[len(turn.calls) :]
        is_last = at == len(run.turns) - 1 and run.answer is not None
        text = run.answer if is_last and run.answer is not None else turn.text
        items.append(
            f"<li>{_agent(turn) if has_hand_off else ''}{_text(text, scored if is_last else None)}{''.join(own)}</li>"
        )
    more = len(items) - _MOST_TURNS
    note = f"<p class='quiet'>and {more} more turns</p>" if more > 0 else ""
    return f"<ol>{''.join(items[:_MOST_TURNS])}</ol>{note}"


def _agent(turn: AgentTurn) -> str:
    return f"<span class='quiet'>{escape(turn.agent)}</span> " if turn.agent else ""


def _text(text: str, scored: ScoredAgentRun | None) -> str:
    if not text.strip():
        return ""
    answer = None if scored is None else scored.measures.get("answer")
    kind = "" if answer is None else "same" if answer.right else "wrong"
    return f"<p>{mark(kind, text)}</p>"


def _marked_call(call: AgentCall, scored: ScoredCall, gold: AgentRun) -> str:
    """A call with its arguments marked; one that gold does not make is marked as a whole."""
    notes = ""
    if scored.invalid is not None:
        notes += f"<p class='error'>not valid: {escape(cut_text(scored.invalid, _TEXT_CHARACTERS))}</p>"
    if call.failed:
        notes += f"<p class='error'>failed: {escape(cut_text(call.result or '', _TEXT_CHARACTERS))}</p>"
    if scored.gold is None:
        return f"<p>{mark('invented', _one_line(call))}</p>{notes}"
    prefix = f"{call.name}."
    right = {path.removeprefix(prefix): bool(score.right) for path, score in scored.fields.items()}
    arguments = marked_object(call.arguments, gold.calls[scored.gold].arguments, right, TrustNotes())
    return f"<div>{mark('same' if scored.exact else '', call.name)}{arguments}</div>{notes}"


def _plain_call(call: AgentCall) -> str:
    return f"<div>{mark('', call.name)}{marked_object(call.arguments, None, {}, TrustNotes())}</div>"


def _one_line(call: AgentCall) -> str:
    arguments = call.arguments.items() if isinstance(call.arguments, dict) else [("", call.arguments)]
    return (
        f"{call.name}({', '.join(f'{name}={value!r}' if name else repr(value) for name, value in arguments)})"
    )
