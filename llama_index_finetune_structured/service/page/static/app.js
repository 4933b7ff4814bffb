// The page: asks the service's API and shows the replies. Texts are only ever set as text, never as HTML.
"use strict";

const KEY = "finetune-structured-key";
const POLL_MS = 1500;
const LARGEST_SUMMARY = 4 * 2 ** 20; // bytes of a file that is read whole to describe it
const ENDED = ["succeeded", "failed", "cancelled"];
const VIEWS = ["sign-in", "jobs", "job", "scorecard", "models", "playground", "keys"];
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
function duration(seconds) {
  if (seconds < 60) return `${Math.max(0, Math.round(seconds))} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}
function tell(problem) {
  setText($("problem"), problem);
  show("problem", Boolean(problem));
}

// -- the API --

class Unauthorized extends Error {}

async function request(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  const response = await fetch(`/v1${path}`, { ...options, headers, credentials: "omit", cache: "no-store" });
  const date = Date.parse(response.headers.get("date"));
  if (!Number.isNaN(date)) clockSkew = date - Date.now();
  if (response.ok) return response;
  let message = `The server replied with ${response.status}.`;
  try { message = (await response.json()).error.message; } catch { /* no JSON, as of a proxy */ }
  throw response.status === 401 ? new Unauthorized(message) : new Error(message);
}
const get = async (path, options) => (await request(path, options)).json();
const post = async (path, body, options = {}) => get(path, {
  ...options, method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body ?? {}),
});
const part = encodeURIComponent;

async function guarded(action) {
  try {
    await action();
    return true;
  } catch (error) {
    if (error instanceof Unauthorized) {
      sessionStorage.removeItem(KEY);
      signInAgain(error.message);
    } else if (error.name !== "AbortError") {
      tell(error instanceof TypeError ? "The server does not answer." : error.message);
    }
    return false;
  }
}

// -- views --

function open(view) {
  for (const name of VIEWS) show(`view-${name}`, name === view);
  show("views", view !== "sign-in");
  show("sign-out", sessionStorage.getItem(KEY) !== null);
  for (const link of $("views").children) {
    const isCurrent = link.hash === `#/${["job", "scorecard"].includes(view) ? "jobs" : view}`;
    if (isCurrent) link.setAttribute("aria-current", "page"); else link.removeAttribute("aria-current");
  }
  tell("");
}
function signInAgain(message) {
  turn += 1;
  open("sign-in");
  tell(message);
  $("key").focus();
}
async function poll(mine, refresh) {
  let hasFailed = false;
  while (mine === turn) {
    if (!document.hidden) {
      const isGood = await guarded(() => refresh(() => mine === turn));
      if (mine !== turn) return;
      if (isGood && hasFailed) tell(""); // not what another action has told
      hasFailed = !isGood;
    }
    await new Promise((done) => setTimeout(done, POLL_MS));
  }
}
function route() {
  turn += 1;
  if (document.body.dataset.keys === "required" && sessionStorage.getItem(KEY) === null) {
    open("sign-in");
    $("key").focus();
    return;
  }
  const [, view = "jobs", name = "", more = ""] = location.hash.split("/");
  const ofJob = more === "scorecard" ? "scorecard" : "job";
  const known = view === "jobs" && name ? ofJob : ["jobs", "models", "playground", "keys"].includes(view) ? view : "jobs";
  open(known);
  discardFiles();
  showKeysLink(turn);
  let id = name;
  try { id = decodeURIComponent(name); } catch { /* as it is: the server has no such name */ }
  const views = { jobs: openJobs, job: openJob, scorecard: openScorecard, models: openModels, playground: openPlayground,
    keys: openKeys };
  views[known](turn, id);
  $(`title-${known}`).focus({ preventScroll: true });
}

$("sign-in").addEventListener("submit", async (event) => {
  event.preventDefault();
  const key = $("key").value.trim();
  if (!/^[!-~]+$/.test(key)) { // which no header can hold
    tell("This is no API key: expected letters, digits and signs of ASCII alone.");
    return;
  }
  sessionStorage.setItem(KEY, key);
  const isGood = await guarded(() => request("/models"));
  if (isGood) {
    $("key").value = "";
    route();
  } else {
    sessionStorage.removeItem(KEY);
  }
});
$("sign-out").addEventListener("click", () => {
  sessionStorage.removeItem(KEY);
  location.reload(); // nothing that the key has shown stays
});

// -- jobs --

const latest = new Map(); // job id -> data of its newest step; of an ended job it does not change
let mostJobs = 20;
async function newestStep(job) {
  if (latest.has(job.id) && ENDED.includes(job.status)) return latest.get(job.id);
  const page = await get(`/fine_tuning/jobs/${part(job.id)}/events?limit=10`);
  const step = page.data.find((event) => event.type === "metrics")?.data;
  latest.set(job.id, step ?? latest.get(job.id) ?? {});
  return latest.get(job.id);
}
function timeLeft(job) {
  if (job.status !== "running" || !job.estimated_finish) return "";
  return duration(job.estimated_finish - (Date.now() + clockSkew) / 1000);
}
function badge(node, status) {
  setText(node, status.replaceAll("_", " "));
  const kind = { succeeded: "good", failed: "bad" }[status] ?? "part";
  node.className = `badge ${kind}`;
}
function jobRow(job) {
  const id = `row-${job.id}`;
  if ($(id)) return $(id);
  const link = make("a", { href: `#/jobs/${part(job.id)}` }, job.user_provided_suffix || job.id);
  return make("tr", { id },
    make("td", {}, link, make("div", { class: "quiet" }, `${job.model}, ${when(job.created_at)}`)),
    make("td", {}, make("span")),
    ...["Step", "Loss", "Held-out loss", "Time left"].map((name) => make("td", { "data-label": name })));
}
async function refreshJobs(isCurrent) {
  const page = await get(`/fine_tuning/jobs?limit=${mostJobs}`);
  const steps = await Promise.all(page.data.map(newestStep));
  if (!isCurrent()) return;
  const rows = page.data.map(jobRow);
  const body = $("job-rows");
  const isSame = rows.length === body.children.length && rows.every((row, at) => row === body.children[at]);
  if (!isSame) body.replaceChildren(...rows); // else a link would lose the keyboard's focus
  page.data.forEach((job, at) => {
    const [, status, step, loss, heldOut, left] = rows[at].children;
    badge(status.firstChild, job.status);
    setText(step, steps[at].step ? `${steps[at].step}/${steps[at].total_steps}` : "–");
    setText(loss, number(steps[at].train_loss));
    setText(heldOut, number(steps[at].full_valid_loss));
    setText(left, timeLeft(job));
  });
  show("job-table", rows.length > 0);
  show("no-jobs", rows.length === 0);
  show("more-jobs", page.has_more && mostJobs < 1000);
}
async function openJobs(mine) {
  poll(mine, refreshJobs);
  await guarded(async () => {
    const models = (await get("/models")).data;
    if (mine === turn) fill($("base"), models.filter((model) => model.owned_by === "system"));
  });
}
function fill(select, models) {
  const before = select.value;
  select.replaceChildren(...models.map((model) => make("option", { value: model.id }, model.id)));
  if (models.some((model) => model.id === before)) select.value = before;
}
async function upload(input) {
  const form = new FormData();
  form.append("purpose", "fine-tune");
  form.append("file", input.files[0]);
  return (await get("/files", { method: "POST", body: form })).id;
}
$("more-jobs").addEventListener("click", () => {
  mostJobs = Math.min(1000, mostJobs * 2);
  route();
});
let uploaded = []; // ids of files that no job was made of yet, the training file first
async function discardFiles() {
  const gone = uploaded;
  uploaded = [];
  show("checked", false);
  for (const id of gone) {
    try { await request(`/files/${part(id)}`, { method: "DELETE" }); } catch { /* it stays among the key's files */ }
  }
}
for (const id of ["training", "held-out", "base"]) $(id).addEventListener("change", discardFiles);
$("discard-files").addEventListener("click", () => {
  discardFiles();
  $("start").reset();
  $("training").focus();
});
$("start").addEventListener("submit", async (event) => {
  event.preventDefault();
  $("check-files").disabled = true;
  tell("");
  const mine = turn;
  await guarded(async () => {
    await discardFiles();
    const inputs = [$("training"), $("held-out")].filter((input) => input.files.length);
    setText($("start-state"), "Uploading …");
    for (const input of inputs) uploaded.push(await upload(input));
    setText($("start-state"), "Checking every line …");
    const reports = await Promise.all(uploaded.map((id) => checkOf(id, $("base").value)));
    if (mine !== turn) return discardFiles();
    $("check-report").replaceChildren(...reports.flatMap((report, at) => checkParts(inputs[at], report)));
    const isBad = reports.some((report) => report.ok === false);
    if (isBad) $("check-report").append(make("p", { class: "error" }, "Correct the errors, and choose the corrected files."));
    $("start-job").disabled = isBad;
    show("checked");
    $("checked").focus();
  });
  $("check-files").disabled = false;
  setText($("start-state"), "");
});
async function checkOf(id, model) {
  try {
    return await post("/fine_tuning/checks", { model, training_file: id });
  } catch (error) {
    if (error instanceof Unauthorized || error instanceof TypeError) throw error;
    return { message: error.message }; // as of a file that is too large: the job checks it
  }
}
function checkParts(input, report) {
  const name = make("h3", {}, input.files[0].name);
  if (report.message) return [name, make("p", {}, report.message)];
  const counts = [`${report.good_lines.toLocaleString()} of ${report.lines.toLocaleString()} lines are good`,
    `${report.trained_tokens.toLocaleString()} trained of ${report.tokens.toLocaleString()} tokens`,
    `the longest line has ${report.longest_tokens.toLocaleString()}`];
  const parts = [name, make("p", {}, `${counts.join(", ")}.`)];
  if (input.id === "training" && report.memory) parts.push(make("p", { class: "quiet" }, `Training: at most ${report.memory}.`));
  if (report.problems.length) parts.push(make("ul", { class: "found" }, ...report.problems.map(problemItem)));
  const more = report.errors + report.warnings - report.problems.length;
  if (more > 0) parts.push(make("p", { class: "quiet" }, `… and ${more.toLocaleString()} more problems.`));
  return parts;
}
function problemItem(problem) {
  const kind = problem.level === "error" ? "bad" : "part";
  const where = problem.line ? `line ${problem.line}: ` : "";
  return make("li", {}, make("span", { class: `badge ${kind}` }, problem.level), ` ${where}${problem.message}`,
    make("div", { class: "quiet" }, problem.fix));
}
$("start-job").addEventListener("click", async () => {
  $("start-job").disabled = true;
  await guarded(async () => {
    if (!$("start").reportValidity()) return;
    const [training, heldOut] = uploaded;
    const body = { model: $("base").value, training_file: training };
    if (heldOut) body.validation_file = heldOut;
    if ($("suffix").value) body.suffix = $("suffix").value;
    if ($("epochs").value) {
      body.method = { type: "supervised", supervised: { hyperparameters: { n_epochs: Number($("epochs").value) } } };
    }
    const job = await post("/fine_tuning/jobs", body);
    uploaded = [];
    $("start").reset();
    location.hash = `#/jobs/${part(job.id)}`;
  });
  $("start-job").disabled = false;
});

// -- one job --

async function allEvents(id, known) { // adds the new ones to ``known``, oldest first
  const fresh = [];
  for (let after = "", hasMore = true; hasMore;) {
    const page = await get(`/fine_tuning/jobs/${part(id)}/events?limit=${known.length ? 50 : 1000}${after}`);
    const old = page.data.findIndex((event) => event.id === known.at(-1)?.id);
    fresh.push(...(old < 0 ? page.data : page.data.slice(0, old)));
    hasMore = page.has_more && old < 0;
    after = `&after=${part(page.data.at(-1)?.id ?? "")}`;
  }
  known.push(...fresh.reverse());
}
function eventItem(event) {
  const level = event.level === "info" ? [] : [
    make("span", { class: `badge ${event.level === "error" ? "bad" : "part"}` }, event.level), " "];
  return make("li", {}, make("time", {}, when(event.created_at)), " ", ...level, event.message);
}
const isStep = (event) => event.type === "metrics";
async function refreshJob(id, events, isCurrent) {
  const [job] = await Promise.all([get(`/fine_tuning/jobs/${part(id)}`), allEvents(id, events)]);
  if (!isCurrent()) return job;
  setText($("title-job"), job.fine_tuned_model ?? job.user_provided_suffix ?? job.id);
  if (!$("job-status").textContent.startsWith(job.status.replaceAll("_", " "))) {
    setText($("told"), `The job is ${job.status.replaceAll("_", " ")}.`);
  }
  badge($("job-status"), job.status);
  const left = timeLeft(job);
  setText($("job-left"), left && `${left} left`);
  show("job-pause", ["queued", "validating_files", "running"].includes(job.status));
  show("job-resume", job.status === "paused");
  show("job-cancel", !ENDED.includes(job.status));
  show("job-try", job.status === "succeeded");
  $("job-try").href = `#/playground/${part(job.fine_tuned_model ?? "")}`;
  show("job-scorecard", job.status === "succeeded" && job.validation_file !== null);
  $("job-scorecard").href = `#/jobs/${part(id)}/scorecard`;
  show("job-error", Boolean(job.error));
  setText($("job-error-text"), job.error?.message ?? "");
  drawFacts(job);
  drawLoss(events.filter(isStep).map((event) => event.data));
  const told = events.filter((event) => !isStep(event));
  const list = $("job-events");
  for (const event of told.slice(list.children.length)) list.prepend(eventItem(event));
  return job;
}
function drawFacts(job) {
  const facts = { Id: job.id, "Base model": job.model, Made: when(job.created_at), Seed: job.seed,
    Epochs: job.hyperparameters.n_epochs, "Batch size": job.hyperparameters.batch_size,
    "Learning rate multiplier": job.hyperparameters.learning_rate_multiplier,
    "Trained tokens": job.trained_tokens?.toLocaleString() };
  const shown = Object.entries(facts).filter(([, value]) => value !== null && value !== undefined);
  const text = JSON.stringify(shown);
  if ($("job-facts").dataset.shown === text) return;
  $("job-facts").dataset.shown = text;
  $("job-facts").replaceChildren(...shown.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, String(value))]));
}
async function describedFile(kind, id) {
  let file;
  try { file = await get(`/files/${part(id)}`); } catch (error) {
    if (error instanceof Unauthorized) throw error;
    return [make("p", {}, `${kind}: the file was deleted, or this key may not read files.`)];
  }
  const rows = file.bytes <= LARGEST_SUMMARY ? await rowsOf(id) : null;
  const size = `${file.bytes.toLocaleString()} bytes`;
  const line = make("p", {}, `${kind}: ${file.filename}, ${rows ? `${rows.length.toLocaleString()} rows, ` : ""}${size}`);
  if (!rows?.length) return [line];
  const summary = make("summary", {}, "First row");
  return [line, make("details", {}, summary, make("pre", { tabindex: "0" }, pretty(rows[0])))];
}
async function rowsOf(fileId) {
  const text = await (await request(`/files/${part(fileId)}/content`)).text();
  return text.split("\n").filter((line) => line.trim());
}
function pretty(text) {
  try { return JSON.stringify(JSON.parse(text), null, 2); } catch { return text; }
}
function openJob(mine, id) {
  const events = [];
  for (const place of ["events", "data", "chart", "facts", "status", "left"]) {
    $(`job-${place}`).replaceChildren();
    delete $(`job-${place}`).dataset.shown;
  }
  for (const place of ["error", "pause", "resume", "cancel", "try", "scorecard"]) show(`job-${place}`, false);
  setText($("title-job"), id);
  for (const action of ["pause", "resume", "cancel"]) {
    $(`job-${action}`).onclick = () => guarded(async () => {
      if (action === "cancel" && !confirm("Cancel this job? It cannot be resumed.")) return;
      await post(`/fine_tuning/jobs/${part(id)}/${action}`);
    });
  }
  let isDescribed = false;
  poll(mine, async (isCurrent) => {
    const job = await refreshJob(id, events, isCurrent);
    if (isDescribed || !isCurrent()) return;
    isDescribed = true;
    const parts = await describedFile("Training", job.training_file);
    if (job.validation_file) parts.push(...await describedFile("Held-out", job.validation_file));
    if (isCurrent()) $("job-data").replaceChildren(...parts);
  });
}
const svg = (tag, attributes, ...children) => {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
};
let drawn = []; // the steps of the loss curve
function drawLoss(steps) {
  drawn = steps;
  const width = Math.max(260, $("job-chart").clientWidth);
  const shown = `${width} ${steps.length}`;
  if ($("job-chart").dataset.shown === shown) return;
  $("job-chart").dataset.shown = shown;
  if (!steps.length) {
    $("job-chart").replaceChildren(make("p", { class: "quiet" }, "No step is finished yet."));
    return;
  }
  const isNew = (step, at) => typeof step.full_valid_loss === "number"
    && step.full_valid_loss !== steps[at - 1]?.full_valid_loss;
  const lines = { training: steps.map((step) => [step.step, step.train_loss]),
    "held-out": steps.filter(isNew).map((step) => [step.step, step.full_valid_loss]) };
  const [left, right, top, bottom] = [48, width - 12, 30, 210];
  const most = Math.max(...Object.values(lines).flat().map(([, loss]) => loss), 1e-6) * 1.05;
  const last = steps.at(-1).total_steps;
  const x = (step) => left + (right - left) * (step - 1) / Math.max(1, last - 1);
  const y = (loss) => bottom - (bottom - top) * loss / most;
  const newest = steps.at(-1);
  const label = `Loss by step: ${number(steps[0].train_loss)} at step ${steps[0].step}, `
    + `${number(newest.train_loss)} at step ${newest.step} of ${last}; held-out loss ${number(newest.full_valid_loss)}.`;
  const picture = svg("svg", { class: "chart", role: "img", "aria-label": label, viewBox: `0 0 ${width} 240` });
  for (const share of [0, 0.5, 1]) {
    const at = bottom - (bottom - top) * share;
    picture.append(svg("line", { class: "axis", x1: left, x2: right, y1: at, y2: at }),
      svg("text", { x: left - 6, y: at + 4, "text-anchor": "end" }, number(most * share, 2)));
  }
  picture.append(svg("text", { x: left, y: 230 }, "step 1"),
    svg("text", { x: right, y: 230, "text-anchor": "end" }, `step ${last}`));
  Object.entries(lines).forEach(([name, points], at) => {
    if (!points.length) return;
    picture.append(svg("polyline", { class: name, points: points.map(([step, loss]) => `${x(step)},${y(loss)}`).join(" ") }));
    const dots = points.length > 60 ? [points.at(-1)] : points;
    for (const [step, loss] of dots) picture.append(svg("circle", { class: `dot-${name}`, cx: x(step), cy: y(loss), r: 3 }));
    picture.append(svg("circle", { class: `dot-${name}`, cx: left + at * 100 + 5, cy: 12, r: 5 }),
      svg("text", { x: left + at * 100 + 16, y: 16 }, name));
  });
  $("job-chart").replaceChildren(picture);
}

addEventListener("resize", () => { if (!$("view-job").hidden) drawLoss(drawn); });

// -- the scorecard of a job --

function openScorecard(mine, id) {
  const path = `/fine_tuning/jobs/${part(id)}/scorecard`;
  $("scorecard-job").href = `#/jobs/${part(id)}`;
  $("scorecard-figures").replaceChildren();
  setText($("scorecard-state"), "");
  for (const name of ["make-scorecard", "download-report"]) show(name, false);
  const draw = (card) => {
    const states = { none: "The tuned model and its base have not been asked the held-out rows yet.",
      running: "The tuned model and its base are asked the held-out rows …", failed: card.error, succeeded: card.verdict };
    setText($("scorecard-state"), states[card.status]);
    $("scorecard-state").className = { failed: "problems", succeeded: "verdict" }[card.status] ?? "";
    show("make-scorecard", ["none", "failed"].includes(card.status));
    show("download-report", card.status === "succeeded");
    if (card.status === "succeeded" && !$("scorecard-figures").children.length) {
      $("scorecard-figures").replaceChildren(...scorecardParts(card));
    }
  };
  $("make-scorecard").onclick = () => guarded(async () => {
    const card = await post(path);
    if (mine === turn) draw(card);
  });
  $("download-report").onclick = () => guarded(async () => {
    const address = URL.createObjectURL(await (await request(`${path}/report`)).blob());
    make("a", { href: address, download: `${id}.html` }).click();
    setTimeout(() => URL.revokeObjectURL(address), 60000);
  });
  let isOver = false;
  poll(mine, async (isCurrent) => {
    if (isOver) return;
    const card = await get(path);
    if (!isCurrent()) return;
    isOver = card.status === "succeeded";
    draw(card);
  });
}
function scorecardParts(card) {
  const interval = ({ rate, low, high }) => (low === undefined ? [percent(rate)]
    : [percent(rate), make("div", { class: "quiet" }, `${percent(low)} to ${percent(high)}`)]);
  const rows = [["Valid answers", (system) => interval(system.schema_valid)],
    ["Answers that are right as a whole", (system) => interval(system.exact_match)],
    ["Field score", (system) => interval(system.field_score)],
    ["Seconds an answer", (system) => [number(system.seconds_per_answer, 2)]]];
  const fields = Object.keys(card.systems[0].fields).map((path) => [path, (system) => [percent(system.fields[path])]]);
  const left = card.left_out ? `, ${card.left_out.toLocaleString()} left out: their own answers are not valid` : "";
  return [make("p", { class: "quiet" }, `${card.rows.toLocaleString()} held-out rows${left}; intervals are of 95 %.`),
    make("h2", {}, "Figures"), systemTable("Figures", card.systems, rows),
    make("h2", {}, "Fields"), systemTable("Fields", card.systems, fields)];
}
function systemTable(label, systems, rows) {
  const head = ["", ...systems.map((system) => system.model)].map((name) => make("th", { scope: "col" }, name));
  const body = rows.map(([name, value]) => make("tr", {}, make("th", { scope: "row" }, name),
    ...systems.map((system) => make("td", {}, ...value(system)))));
  const table = make("table", {}, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...body));
  return make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label }, table);
}

// -- models --

async function openModels(mine) {
  await guarded(async () => {
    const models = (await get("/models")).data;
    if (mine !== turn) return;
    $("model-rows").replaceChildren(...models.map(modelRow));
  });
}
const embeds = (model) => model.owned_by === "embeddings";
function modelRow(model) {
  const isBase = model.owned_by === "system", isOwn = isBase || embeds(model);
  const open = make("a", { class: "button", href: `#/playground/${part(model.id)}` }, "Try");
  const remove = make("button", { type: "button", "aria-label": `Delete ${model.id}` }, "Delete");
  remove.addEventListener("click", () => guarded(async () => {
    if (!confirm(`Delete ${model.id} and its weights?`)) return;
    await request(`/models/${part(model.id)}`, { method: "DELETE" });
    route();
  }));
  return make("tr", {}, make("td", {}, model.id), make("td", {}, isBase ? "base" : isOwn ? "embeddings" : "tuned"),
    make("td", { "data-label": "Made" }, isOwn ? "" : when(model.created)),
    make("td", {}, ...(embeds(model) ? [] : [open]), ...(isOwn ? [] : [" ", remove])));
}

// -- keys --

async function showKeysLink(mine) {
  await guarded(async () => {
    const key = await get("/keys/current");
    if (mine === turn) show("link-keys", key.scopes.includes("admin"));
  });
}
async function openKeys(mine) {
  $("add-key").reset();
  hideSecret();
  await refreshKeys(mine);
}
function hideSecret() {
  setText($("made-secret"), "");
  show("made-key", false);
}
async function refreshKeys(mine) {
  await guarded(async () => {
    const [own, page] = await Promise.all([get("/keys/current"), get("/keys")]);
    if (mine !== turn) return;
    $("key-rows").replaceChildren(...page.data.map((key) => keyRow(key, own.id)));
    show("no-keys", page.data.length === 0);
    show("key-table", page.data.length > 0);
  });
}
function keyRow(key, ownId) {
  const revoke = make("button", { type: "button", "aria-label": `Revoke ${key.name}` }, "Revoke");
  revoke.addEventListener("click", () => guarded(async () => {
    if (!confirm(`Revoke ${key.name}? Its requests are refused from now on; its files, jobs and models stay.`)) return;
    await request(`/keys/${part(key.id)}`, { method: "DELETE" });
    await refreshKeys(turn);
    $("title-keys").focus();
  }));
  const end = key.revoked ? make("span", { class: "badge bad" }, "revoked") : key.id === ownId ? "this page's" : revoke;
  const cells = { "May be used for": key.scopes.join(", ").replaceAll("_", "-"), Made: when(key.created_at),
    "Most files": `${(key.max_stored_bytes / 2 ** 20).toLocaleString(undefined, { maximumFractionDigits: 1 })} MiB`,
    "Most jobs": key.max_waiting_jobs.toLocaleString() };
  return make("tr", {}, make("td", {}, key.name),
    ...Object.entries(cells).map(([name, text]) => make("td", { "data-label": name }, text)), make("td", {}, end));
}
$("add-key").addEventListener("submit", async (event) => {
  event.preventDefault();
  hideSecret();
  await guarded(async () => {
    const scopes = [...document.querySelectorAll("[name=scope]:checked")].map((box) => box.value);
    if (!scopes.length) throw new Error("A key needs something that it may be used for.");
    const body = { name: $("key-name").value, scopes };
    if ($("key-mib").value) body.max_stored_bytes = Number($("key-mib").value) * 2 ** 20;
    if ($("key-jobs").value) body.max_waiting_jobs = Number($("key-jobs").value);
    const made = await post("/keys", body);
    tell("");
    $("add-key").reset();
    $("new-key").open = false;
    setText($("made-name"), made.name);
    setText($("made-secret"), made.key);
    show("made-key");
    show("no-keys", false);
    $("made-secret").focus();
    if (document.body.dataset.keys === "none") document.body.dataset.keys = "required"; // now there is one
    else await refreshKeys(turn);
  });
});
$("hide-key").addEventListener("click", () => {
  hideSecret();
  route(); // which asks for a key where this was the first one
});
$("copy-key").addEventListener("click", () => guarded(() => copied($("made-secret"))));

// -- playground --

let asking = new AbortController();
const baseOf = (name) => (name.startsWith("ft:") ? name.split(":")[1] : name);

async function openPlayground(mine, wanted) {
  await guarded(async () => {
    const models = (await get("/models")).data.filter((model) => !embeds(model));
    if (mine !== turn) return;
    fill($("first"), models);
    fill($("second"), models);
    const tuned = wanted || models.filter((model) => model.owned_by !== "system").at(-1)?.id;
    if (tuned && models.some((model) => model.id === tuned)) {
      $("second").value = tuned;
      $("first").value = baseOf(tuned);
    }
    drawCode();
  });
}
function asked() { // the request's body without its model. Raises Error for a schema that is no JSON object.
  const messages = [{ role: "user", content: $("message").value }];
  if ($("system").value.trim()) messages.unshift({ role: "system", content: $("system").value });
  const body = { messages };
  if ($("form").value === "json_object") body.response_format = { type: "json_object" };
  if ($("form").value === "json_schema") {
    let schema;
    try { schema = JSON.parse($("schema").value); } catch (error) { throw new Error(`The schema is no JSON: ${error.message}`); }
    const title = String(schema?.title ?? "answer").replace(/[^A-Za-z0-9_-]/g, "_").slice(0, 64);
    body.response_format = { type: "json_schema", json_schema: { name: title || "answer", schema } };
  }
  return body;
}
async function answerOf(place, model, body, signal) {
  const card = $(`reply-${place}`);
  card.replaceChildren(make("h2", {}, model), make("p", { class: "quiet" }, "Answering …"));
  show(card.id);
  const started = performance.now();
  let parts;
  try {
    const reply = await post("/chat/completions", { model, ...body, trust: true }, { signal });
    parts = replyParts(reply, (performance.now() - started) / 1000);
  } catch (error) {
    if (signal.aborted || error instanceof Unauthorized) throw error;
    parts = [make("p", { class: "error" }, error instanceof TypeError ? "The server does not answer." : error.message)];
  }
  if (!signal.aborted) card.replaceChildren(make("h2", {}, model), ...parts);
}
function replyParts(reply, seconds) {
  const [choice] = reply.choices;
  const parts = [make("pre", { tabindex: "0" }, pretty(choice.message.content ?? ""))];
  if (choice.message.reasoning_content) {
    parts.push(make("details", {}, make("summary", {}, "Reasoning"), make("pre", {}, choice.message.reasoning_content)));
  }
  const tokens = `${reply.usage.completion_tokens} tokens, ${seconds.toFixed(1)} s`;
  parts.push(make("p", { class: "quiet" }, choice.finish_reason === "length" ? `${tokens}, cut off at the limit` : tokens));
  return choice.trust ? [...parts, ...trustParts(choice.trust)] : parts;
}
function trustParts(trust) {
  const kind = trust.calibrated ? "calibrated" : "not calibrated: it orders answers but is no frequency";
  const parts = [make("p", {}, `Confidence ${percent(trust.probability)} (${kind})`)];
  for (const problem of trust.problems) parts.push(make("p", { class: "error" }, problem));
  if (!trust.fields.length) return parts;
  const head = ["Field", "Value", "Confidence", "Evidence"].map((name) => make("th", { scope: "col" }, name));
  const rows = trust.fields.map((field) => {
    const evidence = field.evidence ? `“${field.evidence.text}” (message ${field.evidence.message + 1})` : "–";
    return make("tr", {}, ...[field.path.join(".") || "answer", JSON.stringify(field.value),
      percent(field.probability), evidence].map((text) => make("td", {}, text)));
  });
  const table = make("table", {}, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...rows));
  return [...parts, make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Fields" }, table)];
}
$("ask").addEventListener("submit", async (event) => {
  event.preventDefault();
  asking.abort(); // a question that is still answered: the server stops generating
  asking = new AbortController();
  const { signal } = asking;
  tell("");
  setText($("ask-state"), "Answering …");
  await guarded(async () => {
    const body = asked();
    await Promise.all(["first", "second"].map((place) => answerOf(place, $(place).value, body, signal)));
  });
  if (!signal.aborted) setText($("ask-state"), "");
});
$("ask").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("ask").requestSubmit();
});
$("take-row").addEventListener("click", () => guarded(async () => {
  const jobs = (await get("/fine_tuning/jobs?limit=1000")).data;
  const job = jobs.find((each) => [$("second").value, $("first").value].includes(each.fine_tuned_model));
  if (!job) throw new Error("Neither model was trained here with this key.");
  if ((await get(`/files/${part(job.training_file)}`)).bytes > LARGEST_SUMMARY) throw new Error("The training file is too large to read here.");
  const rows = await rowsOf(job.training_file);
  takeRow(JSON.parse(rows[Math.floor(Math.random() * rows.length)]));
}));
function takeRow(row) {
  const text = (role) => {
    const found = row.messages.filter((message) => message.role === role).at(-1)?.content ?? "";
    return typeof found === "string" ? found : found.map((piece) => piece.text ?? "").join("");
  };
  $("system").value = text("system");
  $("message").value = text("user");
  const schema = row.response_format?.json_schema?.schema ?? row.answer_schema;
  if (schema) $("schema").value = JSON.stringify(schema, null, 2);
  $("form").value = schema ? "json_schema" : "text";
  drawCode();
}
function drawCode() {
  show("schema-label", $("form").value === "json_schema");
  let body;
  try { body = { model: $("second").value, ...asked() }; } catch { return; }
  const url = `${location.origin}/v1`;
  const hasKey = sessionStorage.getItem(KEY) !== null;
  const json = JSON.stringify(body, null, 2);
  // A JSON text in a JSON text is also a Python literal, whatever it holds; a raw one is easier to read.
  const literal = json.includes("'''") ? JSON.stringify(json) : `r'''${json}'''`;
  setText($("code-python"), ["import json", ...(hasKey ? ["import os"] : []), "", "from openai import OpenAI", "",
    `client = OpenAI(base_url=${JSON.stringify(url)}, api_key=${hasKey ? 'os.environ["SERVICE_KEY"]' : '"none"'})`,
    `request = json.loads(${literal})`,
    "reply = client.chat.completions.create(**request)", "print(reply.choices[0].message.content)"].join("\n"));
  const quoted = `'${JSON.stringify(body).replaceAll("'", "'\\''")}'`;
  setText($("code-curl"), [`curl ${url}/chat/completions \\`, "  -H 'Content-Type: application/json' \\",
    ...(hasKey ? ['  -H "Authorization: Bearer $SERVICE_KEY" \\'] : []), `  -d ${quoted}`].join("\n"));
}
$("ask").addEventListener("input", drawCode);
for (const language of ["python", "curl"]) {
  $(`copy-${language}`).addEventListener("click", () => guarded(() => copied($(`code-${language}`))));
}
async function copied(node) {
  getSelection().selectAllChildren(node); // to be copied by hand where the browser refuses: plain HTTP elsewhere
  await navigator.clipboard?.writeText(node.textContent);
  setText($("told"), navigator.clipboard ? "Copied." : "Selected: copy it with the keyboard.");
}

addEventListener("hashchange", route);
route();
