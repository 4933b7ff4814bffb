// -- files --

let mostFiles = 50;
async function openFiles(mine) {
  await guarded(async () => {
    const { data } = await get("/files");
    if (mine !== turn) return;
    const bytes = data.reduce((sum, file) => sum + file.bytes, 0);
    const of = own?.max_stored_bytes ? ` of ${size(own.max_stored_bytes)}` : "";
    setText($("stored-files"), data.length ? `${data.length.toLocaleString()} files, ${size(bytes)}${of}.` : "There is no file yet.");
    $("file-rows").replaceChildren(...data.slice(0, mostFiles).map(fileRow));
    show("file-table", data.length > 0);
    show("more-files", data.length > mostFiles);
  });
}
function fileRow(file) {
  const save = make("button", { type: "button", "aria-label": `Download ${file.filename}` }, "Download");
  save.addEventListener("click", () => guarded(() => download(`/files/${part(file.id)}/content`, file.filename)));
  const remove = make("button", { type: "button", "aria-label": `Delete ${file.filename}` }, "Delete");
  remove.addEventListener("click", () => guarded(async () => {
    const ofJobs = " Jobs that were made with it go on, but scorecards and the playground can no longer read it.";
    if (!confirm(`Delete ${file.filename}?${file.purpose === "fine-tune" ? ofJobs : ""}`)) return;
    await request(`/files/${part(file.id)}`, { method: "DELETE" });
    route();
  }));
  const cells = { Bytes: file.bytes.toLocaleString(), Made: when(file.created_at) };
  const id = file.expires_at ? `${file.id}, until ${when(file.expires_at)}` : file.id;
  return make("tr", {}, make("td", {}, file.filename, make("div", { class: "quiet" }, id)), make("td", {}, file.purpose),
    ...Object.entries(cells).map(([name, text]) => make("td", { "data-label": name }, text)),
    make("td", {}, save, " ", remove));
}
$("more-files").addEventListener("click", () => {
  mostFiles *= 2;
  route();
});
