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
function stepsOf(events) { // a held-out loss that was measured after its step was read is an event of its own
  const steps = new Map(events.filter(isStep).map(({ data }) => [data.step, { ...data }]));
  for (const { data } of events) {
    if (typeof data?.full_valid_loss === "number" && steps.has(data.step)) {
      steps.get(data.step).full_valid_loss = data.full_valid_loss;
    }
  }
  return [...steps.values()];
}
function progressOf(job, steps) {
  const left = timeLeft(job), newest = steps.at(-1);
  const measured = steps.findLast((step) => typeof step.full_valid_loss === "number");
  return [...(newest ? [`step ${newest.step} of ${newest.total_steps}`, `loss ${number(newest.train_loss)}`] : []),
    ...(measured ? [`held-out loss ${number(measured.full_valid_loss)}`] : []),
    ...(left ? [`${left} left`] : [])].join(", ");
}
async function refreshJob(id, events, isCurrent) {
  const [job] = await Promise.all([get(`/fine_tuning/jobs/${part(id)}`), allEvents(id, events)]);
  const models = job.status === "succeeded" ? (await get("/models")).data : [];
  if (!isCurrent()) return job;
  show("job-known"); // before the chart, which is as wide as its place
  setText($("title-job"), job.fine_tuned_model ?? job.user_provided_suffix ?? job.id);
  if (!$("job-status").textContent.startsWith(job.status.replaceAll("_", " "))) {
    setText($("told"), `The job is ${job.status.replaceAll("_", " ")}.`);
  }
  badge($("job-status"), job.status);
  setText($("job-progress"), progressOf(job, stepsOf(events)));
  show("job-pause", ["queued", "validating_files", "running"].includes(job.status));
  show("job-resume", job.status === "paused");
  show("job-cancel", !ENDED.includes(job.status));
  drawTry(job, models);
  $("job-scorecard").href = `#/jobs/${part(id)}/scorecard`;
  show("job-error", Boolean(job.error));
  setText($("job-error-text"), job.error?.message ?? "");
  drawFacts(job);
  drawLoss(stepsOf(events), ENDED.includes(job.status));
  const told = events.filter((event) => !isStep(event));
  const list = $("job-events");
  for (const event of told.slice(list.children.length)) list.prepend(eventItem(event));
  return job;
}
function drawTry(job, models) { // a model that was deleted meanwhile cannot be asked, which is said instead
  const name = job.status === "succeeded" ? job.fine_tuned_model : null;
  const isThere = models.some((model) => model.id === name);
  show("job-try", isThere && may("chat"));
  show("job-scorecard", isThere && job.validation_file !== null); // which is deleted with the model
  $("job-try").href = `#/playground/${part(name ?? "")}`;
  show("job-gone", Boolean(name) && !isThere);
}
function drawFacts(job) {
  const facts = { Id: job.id, "Base model": job.model, Made: when(job.created_at), Seed: job.seed,
    Method: job.method.type, Epochs: job.hyperparameters.n_epochs, "Batch size": job.hyperparameters.batch_size,
    "Learning rate multiplier": job.hyperparameters.learning_rate_multiplier, Beta: job.hyperparameters.beta,
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
    return [make("p", {}, `${kind}: ${may("files") ? "the file was deleted" : "this key may not read files"}.`)];
  }
  const rows = file.bytes <= LARGEST_SUMMARY ? await rowsOf(id) : null;
  const bytes = `${file.bytes.toLocaleString()} bytes`;
  const line = make("p", {}, `${kind}: ${file.filename}, ${rows ? `${rows.length.toLocaleString()} rows, ` : ""}${bytes}`);
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
  show("job-known", false); // until the server has said that there is such a job
  for (const place of ["events", "data", "chart", "facts", "status", "progress"]) {
    $(`job-${place}`).replaceChildren();
    delete $(`job-${place}`).dataset.shown;
  }
  for (const place of ["error", "pause", "resume", "cancel", "try", "gone", "scorecard"]) show(`job-${place}`, false);
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
let drawn = [[], false]; // the steps of the loss curve, and whether no more will come
function drawLoss(steps, isOver) {
  drawn = [steps, isOver];
  const width = Math.max(260, $("job-chart").clientWidth);
  const measured = steps.filter((step) => typeof step.full_valid_loss === "number");
  const shown = `${width} ${steps.length} ${measured.length} ${isOver}`;
  if ($("job-chart").dataset.shown === shown) return;
  $("job-chart").dataset.shown = shown;
  if (!steps.length) {
    const none = isOver ? "The job ended before its first step." : "No step is finished yet.";
    $("job-chart").replaceChildren(make("p", { class: "quiet" }, none));
    return;
  }
  const lines = { training: steps.map((step) => [step.step, step.train_loss]),
    "held-out": measured.map((step) => [step.step, step.full_valid_loss]) };
  const [left, right, top, bottom] = [48, width - 12, 30, 210];
  const most = Math.max(...Object.values(lines).flat().map(([, loss]) => loss), 1e-6) * 1.05;
  const last = steps.at(-1).total_steps;
  const x = (step) => left + (right - left) * (step - 1) / Math.max(1, last - 1);
  const y = (loss) => bottom - (bottom - top) * loss / most;
  const newest = steps.at(-1);
  const label = `Loss by step: ${number(steps[0].train_loss)} at step ${steps[0].step}, `
    + `${number(newest.train_loss)} at step ${newest.step} of ${last}; held-out loss ${number(measured.at(-1)?.full_valid_loss)}.`;
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

addEventListener("resize", () => { if (!$("view-job").hidden) drawLoss(...drawn); });
