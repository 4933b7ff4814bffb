// -- a new job --

async function upload(input) {
  const form = new FormData();
  form.append("purpose", "fine-tune");
  form.append("file", input.files[0]);
  try {
    return (await get("/files", { method: "POST", body: form })).id;
  } catch (error) { // of which of the two files it is
    error.message = `${input.files[0].name}: ${error.message}`;
    throw error;
  }
}
let uploaded = []; // ids of files that no job was made of yet, the training file first
function forgetFiles() {
  uploaded = [];
  show("checked", false);
}
async function discardFiles() {
  const gone = uploaded;
  forgetFiles();
  for (const id of gone) {
    try { await request(`/files/${part(id)}`, { method: "DELETE" }); } catch { /* it stays among the key's files */ }
  }
}
function dropCheck() { // what was told of the files before is not of those that are chosen now
  tell("");
  discardFiles();
}
for (const id of ["method", "training", "held-out", "base"]) $(id).addEventListener("change", dropCheck);
$("discard-files").addEventListener("click", () => {
  dropCheck();
  resetForm();
  $("training").focus();
});
function fillBases(models) {
  const before = $("base").value;
  const isTuned = (model) => model.owned_by !== "system";
  const bases = models.filter((model) => !isTuned(model)).map(modelOption);
  const tuned = models.filter(isTuned).reverse().map(modelOption); // the newest first
  const groups = tuned.length ? [make("optgroup", { label: "Tuned models, to go on from" }, ...tuned)] : [];
  $("base").replaceChildren(make("optgroup", { label: "Base models" }, ...bases), ...groups);
  if (models.some((model) => model.id === before)) $("base").value = before;
}
function drawMethod() {
  const isDpo = $("method").value === "dpo";
  setText($("line-form"), isDpo ? "JSON lines of preferences: input, preferred_output, non_preferred_output"
    : "JSON lines: Examples, or OpenAI's chat format");
  show("beta-label", isDpo);
  $("beta").disabled = !isDpo; // a hidden field must not hold the form back
}
$("method").addEventListener("change", drawMethod);
function resetForm() {
  $("start").reset();
  drawMethod();
}
resetForm();
$("start").addEventListener("submit", async (event) => {
  event.preventDefault();
  $("check-files").disabled = true;
  tell("");
  await guarded(async () => {
    await discardFiles();
    const inputs = [$("training"), $("held-out")].filter((input) => input.files.length);
    setText($("start-state"), "Uploading …");
    for (const input of inputs) uploaded.push(await upload(input));
    setText($("start-state"), "Checking every line …");
    const reports = await Promise.all(uploaded.map((id) => checkOf(id)));
    $("check-report").replaceChildren(...reports.flatMap((report, at) => checkParts(inputs[at], report)));
    const isBad = reports.some((report) => report.ok === false);
    if (isBad) $("check-report").append(isOfOther(reports[0]) ? otherMethod()
      : make("p", { class: "error" }, "Correct the errors, and choose the corrected files."));
    $("start-job").disabled = isBad;
    show("checked");
    $("checked").focus();
  });
  $("check-files").disabled = false;
  setText($("start-state"), "");
});
async function checkOf(id) {
  try {
    const body = { model: $("base").value, method: $("method").value, training_file: id };
    return await post("/fine_tuning/checks", body);
  } catch (error) {
    if (error instanceof Unauthorized || error instanceof TypeError) throw error;
    return { message: error.message }; // as of a file that is too large: the job checks it
  }
}
const isOfOther = (report) => report.problems?.[0]?.code === "wrong_method";
function otherMethod() { // the button that checks the files for the method that their lines are for
  const method = $("method").value === "dpo" ? "supervised" : "dpo";
  const button = make("button", { type: "button", id: "other-method" }, `Check again with the method ${method}`);
  button.addEventListener("click", () => {
    $("method").value = method;
    drawMethod();
    $("start").requestSubmit();
  });
  return make("p", {}, button);
}
function checkParts(input, report) {
  const name = make("h3", {}, input.files[0].name);
  if (report.message) return [name, make("p", {}, report.message)];
  if (isOfOther(report)) return [name, make("ul", { class: "found" }, problemItem(report.problems[0]))];
  const counts = [`${report.good_lines.toLocaleString()} of ${report.lines.toLocaleString()} lines are good`,
    `${report.trained_tokens.toLocaleString()} trained of ${report.tokens.toLocaleString()} tokens`,
    `the longest line has ${report.longest_tokens.toLocaleString()}`];
  const which = report.method === "dpo" ? " The counts are those of the preferred answers." : "";
  const parts = [name, make("p", {}, `${counts.join(", ")}.${which}`)];
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
function methodOf() { // the field of the request; what is empty is left to the engine
  const fields = { epochs: "n_epochs", "batch-size": "batch_size", multiplier: "learning_rate_multiplier", beta: "beta" };
  const given = Object.entries(fields).filter(([id]) => $(id).value && !$(id).disabled);
  const hyperparameters = Object.fromEntries(given.map(([id, name]) => [name, Number($(id).value)]));
  const type = $("method").value;
  return { type, [type]: { hyperparameters } };
}
$("start-job").addEventListener("click", async () => {
  $("start-job").disabled = true;
  await guarded(async () => {
    if (!$("start").reportValidity()) return;
    const [training, heldOut] = uploaded;
    const body = { model: $("base").value, training_file: training, method: methodOf() };
    if (heldOut) body.validation_file = heldOut;
    if ($("suffix").value) body.suffix = $("suffix").value;
    const job = await post("/fine_tuning/jobs", body);
    forgetFiles();
    resetForm();
    location.hash = `#/jobs/${part(job.id)}`;
  });
  $("start-job").disabled = false;
});
