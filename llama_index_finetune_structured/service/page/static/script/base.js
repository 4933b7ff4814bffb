// The page: asks the service's API and shows the replies. Texts are only ever set as text, never as HTML.
"use strict";

const KEY = "finetune-structured-key";
const POLL_MS = 1500;
const LARGEST_SUMMARY = 4 * 2 ** 20; // bytes of a file that is read whole to describe it
const ENDED = ["succeeded", "failed", "cancelled"];
const VIEWS = ["sign-in", "jobs", "job", "scorecard", "files", "models", "playground", "keys", "refused"];
const $ = (id) => document.getElementById(id);
let turn = 0; // of the view that is shown: what an earlier one has asked for is dropped
let clockSkew = 0; // ms that the server's clock is ahead

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}
function setText(node, text) { // only where it differs, so that selections are kept
  if (node.textContent !== text) node.textContent = text;
}
const show = (id, isShown = true) => { $(id).hidden = !isShown; };
const number = (value, digits = 4) => (typeof value === "number" ? value.toFixed(digits) : "–");
const when = (seconds) => new Date(seconds * 1000).toLocaleString();
const percent = (value) => (typeof value === "number" ? `${(value * 100).toFixed(1)} %` : "–");
function size(bytes) {
  const power = Math.min(3, Math.max(0, Math.floor(Math.log2(Math.max(1, bytes)) / 10)));
  const count = (bytes / 1024 ** power).toLocaleString(undefined, { maximumFractionDigits: 1 });
  return `${count} ${["bytes", "KiB", "MiB", "GiB"][power]}`;
}
function duration(seconds) {
  if (seconds < 60) return `${Math.max(0, Math.round(seconds))} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}
const embeds = (model) => model.owned_by === "embeddings";
const isStill = matchMedia("(prefers-reduced-motion: reduce)"); // whether the reader wants nothing to move
function tell(problem) { // at the top of the page: what was pressed may be far below
  show("problem", Boolean(problem));
  $("problem").replaceChildren(problem); // anew where it is the same: else a screen reader reads it once alone
  if (problem) $("problem").scrollIntoView({ block: "nearest", behavior: isStill.matches ? "instant" : "smooth" });
}
function tellInPlace(problem) { // of what nobody has pressed: a reader further down stays there
  show("problem", Boolean(problem));
  setText($("problem"), problem);
}
