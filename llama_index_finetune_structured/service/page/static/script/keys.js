// -- keys --

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
    const page = await get("/keys");
    if (mine !== turn) return;
    $("key-rows").replaceChildren(...page.data.map((key) => keyRow(key, own?.id)));
    show("no-keys", page.data.length === 0);
    // Without it, nobody could make or revoke keys here after the first one.
    if (page.data.length === 0) document.querySelector("[name=scope][value=admin]").checked = true;
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
    "Most files": size(key.max_stored_bytes),
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
