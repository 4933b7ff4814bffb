// -- playground --

const LANGUAGES = ["python", "curl"]; // of the client code
let asking = new AbortController();
const baseOf = (name) => (name.startsWith("ft:") ? name.split(":")[1] : name);

async function openPlayground(mine, wanted) {
  show("take-row", may("files") && may("fine_tuning"));
  await guarded(async () => {
    const models = (await get("/models")).data.filter((model) => !embeds(model));
    if (mine !== turn) return;
    fill($("first"), models);
    fill($("second"), models);
    if (wanted && !models.some((model) => model.id === wanted)) {
      for (const place of ["first", "second"]) $(place).selectedIndex = -1; // another one would be taken for it
      tell(`There is no model ${wanted} to ask: it was deleted, or this key does not see it. Choose other models.`);
      return drawCode();
    }
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
    if (schema === null || typeof schema !== "object" || Array.isArray(schema)) throw new Error("The schema is no JSON object.");
    const title = String(schema.title ?? "answer").replace(/[^A-Za-z0-9_-]/g, "_").slice(0, 64);
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
  for (const place of ["first", "second"]) show(`reply-${place}`, false); // an earlier one is no reply to this
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
  const file = await get(`/files/${part(job.training_file)}`).catch((error) => {
    throw error.code === "file_not_found" ? new Error("The training file of this model was deleted.") : error;
  });
  if (file.bytes > LARGEST_SUMMARY) throw new Error("The training file is too large to read here.");
  const rows = await rowsOf(job.training_file);
  takeRow(JSON.parse(rows[Math.floor(Math.random() * rows.length)]));
}));
function takeRow(row) {
  const messages = row.messages ?? row.input?.messages ?? row.prompt; // the last two: a preference, a row of TRL's
  if (!Array.isArray(messages)) throw new Error("The row of the training file has no messages.");
  const text = (role) => {
    const found = messages.filter((message) => message.role === role).at(-1)?.content ?? "";
    return typeof found === "string" ? found : found.map((piece) => piece.text ?? "").join("");
  };
  $("system").value = text("system");
  $("message").value = text("user");
  const turns = messages.filter((message) => message.role === "user").length;
  setText($("ask-state"), turns > 1 ? `The row has ${turns} messages of the user: the last one alone is taken.` : "");
  const schema = row.response_format?.json_schema?.schema ?? row.answer_schema;
  if (schema) $("schema").value = JSON.stringify(schema, null, 2);
  $("form").value = schema ? "json_schema" : "text";
  drawCode();
}
function drawCode() {
  show("schema-label", $("form").value === "json_schema");
  if (!$("second").value) return drawNoCode("No code: choose the second model.");
  let body;
  try { body = { model: $("second").value, ...asked() }; } catch (error) { return drawNoCode(`No code: ${error.message}`); }
  for (const language of LANGUAGES) $(`copy-${language}`).disabled = false;
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
function drawNoCode(why) { // the code of an earlier request is not kept: it would be copied as this one's
  for (const language of LANGUAGES) {
    setText($(`code-${language}`), why);
    $(`copy-${language}`).disabled = true;
  }
}
$("ask").addEventListener("input", drawCode);
for (const language of LANGUAGES) {
  $(`copy-${language}`).addEventListener("click", () => guarded(() => copied($(`code-${language}`))));
}
async function copied(node) {
  getSelection().selectAllChildren(node); // to be copied by hand where the browser refuses: plain HTTP elsewhere
  await navigator.clipboard?.writeText(node.textContent);
  setText($("told"), navigator.clipboard ? "Copied." : "Selected: copy it with the keyboard.");
}
