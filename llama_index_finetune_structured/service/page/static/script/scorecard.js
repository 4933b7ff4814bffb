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
  $("download-report").onclick = () => guarded(() => download(`${path}/report`, `${id}.html`));
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
