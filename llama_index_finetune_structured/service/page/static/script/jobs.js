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
    make("td", {}, link, make("div", { class: "quiet" }, `${job.model}, ${job.method.type}, ${when(job.created_at)}`),
      make("div", { class: "error why" })),
    make("td", {}, make("span")),
    ...["Step", "Loss", "Held-out loss", "Time left"].map((name) => make("td", { "data-label": name })));
}
function reasonOf(error) { // the first line, of a check's without the problem's code: a phone shows few words
  return (error?.message ?? "").split("\n", 1)[0].replace(/: error \[\w+\] /, ": ");
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
    const [name, status, step, loss, heldOut, left] = rows[at].children;
    setText(name.lastChild, job.status === "failed" ? reasonOf(job.error) : "");
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
  show("start", may("files"));
  show("no-files", !may("files"));
  poll(mine, refreshJobs);
  await guarded(async () => {
    const models = (await get("/models")).data.filter((model) => !embeds(model));
    if (mine === turn) fillBases(models);
  });
}
$("more-jobs").addEventListener("click", () => {
  mostJobs = Math.min(1000, mostJobs * 2);
  route();
});
