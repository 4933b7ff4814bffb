// -- models --

async function openModels(mine) {
  await guarded(async () => {
    const models = (await get("/models")).data;
    if (mine !== turn) return;
    $("model-rows").replaceChildren(...models.map(modelRow));
  });
}
function modelRow(model) {
  const isBase = model.owned_by === "system", isOwn = isBase || embeds(model);
  const open = make("a", { class: "button", href: `#/playground/${part(model.id)}` }, "Try");
  const remove = make("button", { type: "button", "aria-label": `Delete ${model.id}` }, "Delete");
  remove.addEventListener("click", () => guarded(async () => {
    if (!confirm(`Delete ${model.id} and its weights?`)) return;
    await request(`/models/${part(model.id)}`, { method: "DELETE" });
    route();
  }));
  const actions = [...(may("chat") && !embeds(model) ? [open, " "] : []), ...(isOwn || !may("fine_tuning") ? [] : [remove])];
  return make("tr", {}, make("td", {}, model.id), make("td", {}, isBase ? "base" : isOwn ? "embeddings" : "tuned"),
    make("td", { "data-label": "Made" }, isOwn ? "" : when(model.created)), make("td", {}, ...actions));
}
