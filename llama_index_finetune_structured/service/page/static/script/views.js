// -- views --

const NEEDS = { jobs: "fine_tuning", job: "fine_tuning", scorecard: "fine_tuning", files: "files", playground: "chat",
  keys: "admin" };
const NEEDY = { jobs: "Jobs need", job: "Jobs need", scorecard: "Scorecards need", files: "Files need",
  playground: "The playground needs", keys: "The list of keys needs" };
let own = null; // the key of this page, once the server has described it
const may = (scope) => own === null || own.scopes.includes(scope);
const named = (scopes) => scopes.map((scope) => scope.replaceAll("_", "-")).join(", ");
const allowed = () => (own.scopes.length ? named(own.scopes) : "nothing but the list of models");

function open(view) {
  for (const name of VIEWS) show(`view-${name}`, name === view);
  show("views", view !== "sign-in");
  show("sign-out", sessionStorage.getItem(KEY) !== null);
  show("link-jobs", may(NEEDS.jobs));
  show("link-files", may(NEEDS.files));
  show("link-playground", may(NEEDS.playground));
  show("link-keys", own !== null && may(NEEDS.keys));
  for (const link of $("views").children) {
    const isCurrent = link.hash === `#/${["job", "scorecard"].includes(view) ? "jobs" : view}`;
    if (isCurrent) link.setAttribute("aria-current", "page"); else link.removeAttribute("aria-current");
  }
  const lacks = [["jobs need", "fine_tuning"], ["the playground needs", "chat"], ["files and new jobs need", "files"]]
    .filter(([, scope]) => !may(scope)).map(([what, scope]) => `${what} the scope ${named([scope])}`);
  const isNoted = view !== "sign-in" && view !== "refused" && lacks.length > 0;
  setText($("key-note"), isNoted ? `This key may be used for ${allowed()} alone: ${lacks.join(", ")}.` : "");
  show("key-note", isNoted);
  tell("");
}
function signInAgain(message) {
  turn += 1;
  forgetFiles(); // of the key before
  own = null;
  open("sign-in");
  tell(message);
  $("key").focus();
}
async function poll(mine, refresh) { // until another view is shown, or there is no such job
  let hasFailed = false, isOver = false;
  while (mine === turn && !isOver) {
    if (!document.hidden) {
      const isGood = await guarded(() => refresh(() => mine === turn).catch((error) => {
        isOver = error.code === "fine_tuning_job_not_found"; // it stays so: another question is refused as well
        throw isOver ? new Error("There is no such job: its address is wrong, or another key made it.") : error;
      }), (problem) => {
        if (mine === turn) tellInPlace(problem);
      });
      if (mine !== turn) return;
      if (isGood && hasFailed) tell(""); // not what another action has told
      hasFailed = !isGood;
    }
    await new Promise((done) => setTimeout(done, POLL_MS));
  }
}
async function route() {
  turn += 1;
  const mine = turn;
  if (document.body.dataset.keys === "required" && sessionStorage.getItem(KEY) === null) {
    own = null;
    open("sign-in");
    $("key").focus();
    return;
  }
  if (own === null) await guarded(async () => { own = await get("/keys/current"); });
  if (mine !== turn) return;
  const [, asked = "", name = "", more = ""] = location.hash.split("/");
  const view = asked || (["jobs", "playground", "files", "keys"].find((each) => may(NEEDS[each])) ?? "models");
  const ofJob = more === "scorecard" ? "scorecard" : "job";
  const known = view === "jobs" && name ? ofJob : ["jobs", "files", "models", "playground", "keys"].includes(view) ? view : "jobs";
  if (NEEDS[known] && !may(NEEDS[known])) {
    open("refused");
    setText($("refused-why"),
      `${NEEDY[known]} a key with the scope ${named([NEEDS[known]])}. This key may be used for ${allowed()}.`);
    $("title-refused").focus({ preventScroll: true });
    return;
  }
  open(known);
  let id = name;
  try { id = decodeURIComponent(name); } catch { /* as it is: the server has no such name */ }
  const views = { jobs: openJobs, job: openJob, scorecard: openScorecard, files: openFiles, models: openModels,
    playground: openPlayground, keys: openKeys };
  views[known](mine, id);
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
  const isGood = await guarded(async () => {
    try { own = await get("/keys/current"); } catch (error) {
      if (error instanceof Unauthorized) error.message = "The server does not know this API key, or it was revoked.";
      throw error;
    }
  });
  if (isGood) {
    $("key").value = "";
    route();
  } else {
    sessionStorage.removeItem(KEY);
  }
});
for (const id of ["sign-out", "other-key"]) {
  $(id).addEventListener("click", () => {
    sessionStorage.removeItem(KEY);
    location.reload(); // nothing that the key has shown stays
  });
}


const modelOption = (model) => make("option", { value: model.id }, model.id);
function fill(select, models) {
  const before = select.value;
  select.replaceChildren(...models.map(modelOption));
  if (models.some((model) => model.id === before)) select.value = before;
}
