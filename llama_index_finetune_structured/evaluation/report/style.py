"""Style sheet of the HTML page."""

from __future__ import annotations

__all__ = ["STYLE"]

STYLE = """
:root{--ink:#1c2128;--quiet:#57606a;--paper:#fff;--card:#f5f6f8;--line:#d5d9df;
--good:#116b3f;--good-bg:#dcf3e5;--bad:#a01c2b;--bad-bg:#fbe1e4;--part:#7a4d00;--part-bg:#fbeccb}
@media(prefers-color-scheme:dark){:root{--ink:#e8eaed;--quiet:#a3abb5;--paper:#14171c;--card:#1d2228;
--line:#3a414b;--good:#7fdca6;--good-bg:#12351f;--bad:#ff9aa5;--bad-bg:#45151c;--part:#f3c46b;--part-bg:#3d2c09}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",
Roboto,Helvetica,Arial,sans-serif}
main{max-width:1080px;margin:0 auto;padding:24px 16px 64px}
h1{font-size:1.7rem;line-height:1.2;margin:0 0 12px;overflow-wrap:anywhere}
h2{font-size:1.2rem;margin:40px 0 12px;overflow-wrap:anywhere}
h3{font-size:1rem;margin:0;overflow-wrap:anywhere}
h4{font-size:.9rem;margin:0 0 6px;overflow-wrap:anywhere}
.verdict{font-size:1.25rem;line-height:1.4;margin:0;padding:14px 18px;background:var(--card);
border-left:5px solid #2f7fd1;border-radius:6px;overflow-wrap:anywhere}
.problems{margin:12px 0 0;padding:10px 18px 10px 34px;background:var(--bad-bg);color:var(--bad);border-radius:6px;
overflow-wrap:anywhere}
.quiet{color:var(--quiet);font-size:.85rem;margin:4px 0 8px;overflow-wrap:anywhere}
figure{margin:0}
.scroll{overflow-x:auto;max-width:100%}
table{border-collapse:collapse;font-size:.9rem;min-width:100%}
.fields{display:grid;gap:18px 32px;grid-template-columns:repeat(auto-fit,minmax(min(100%,430px),1fr))}
.fields>div{min-width:0}
.fields th,.fields td{padding:4px 6px}
th,td{padding:5px 8px;border-bottom:1px solid var(--line);text-align:right;vertical-align:top;
font-variant-numeric:tabular-nums;overflow-wrap:anywhere;min-width:5.5em}
th:first-child{text-align:left}
.fields thead th{overflow-wrap:normal}
tbody th{font-weight:500}
thead th{color:var(--quiet);font-weight:600}
.case{border:1px solid var(--line);border-radius:8px;padding:14px;margin:0 0 16px}
.answers{display:grid;gap:10px;grid-template-columns:repeat(auto-fit,minmax(min(100%,250px),1fr))}
.answer{background:var(--card);border-radius:6px;padding:10px 12px;min-width:0;font-size:.88rem}
.gold{outline:1px solid var(--line)}
.answer ol{margin:0;padding-left:1.4em}
.answer li{margin:0 0 6px}
.answer p{margin:0 0 4px;overflow-wrap:anywhere}
dl{margin:0;display:grid;grid-template-columns:auto minmax(0,1fr);gap:2px 10px}
dt{color:var(--quiet)}
dd{margin:0;overflow-wrap:anywhere}
dd ul{margin:0;padding:0;list-style:none}
pre{margin:0;white-space:pre-wrap;overflow-wrap:anywhere;font-size:.8rem}
.badge{font-weight:600;font-size:.78rem;padding:1px 7px;border-radius:9px;white-space:nowrap}
.badge.good{color:var(--good);background:var(--good-bg)}
.badge.part{color:var(--part);background:var(--part-bg)}
.badge.bad{color:var(--bad);background:var(--bad-bg)}
.mark{border-radius:4px;padding:0 3px;-webkit-box-decoration-break:clone;box-decoration-break:clone}
.mark.wrong,.mark.invented{color:var(--bad);background:var(--bad-bg)}
.mark.missing{color:var(--part);background:var(--part-bg)}
.sure{color:var(--quiet);font-size:.92em}
.error{color:var(--bad);margin:0 0 6px;overflow-wrap:anywhere}
@media(max-width:480px){table{font-size:.78rem}th,td,.fields th,.fields td{padding:4px 4px}}
.facts{font-size:.9rem}
.sr{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%);white-space:nowrap}
"""
