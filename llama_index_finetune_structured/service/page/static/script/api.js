// -- the API --

class Unauthorized extends Error {}

async function request(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  const response = await fetch(`/v1${path}`, { ...options, headers, credentials: "omit", cache: "no-store" });
  const date = Date.parse(response.headers.get("date"));
  if (!Number.isNaN(date)) clockSkew = date - Date.now();
  if (response.ok) return response;
  let message = `The server replied with ${response.status}.`, code = null;
  try { ({ message, code } = (await response.json()).error); } catch { /* no JSON, as of a proxy */ }
  throw Object.assign(response.status === 401 ? new Unauthorized(message) : new Error(message), { code });
}
const get = async (path, options) => (await request(path, options)).json();
const post = async (path, body, options = {}) => get(path, {
  ...options, method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body ?? {}),
});
const part = encodeURIComponent;
async function download(path, name) {
  const address = URL.createObjectURL(await (await request(path)).blob());
  make("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60000);
}

async function guarded(action, report = tell) {
  try {
    await action();
    return true;
  } catch (error) {
    if (error instanceof Unauthorized) {
      sessionStorage.removeItem(KEY);
      signInAgain(error.message);
    } else if (error.name !== "AbortError") {
      report(error instanceof TypeError ? "The server does not answer." : error.message);
    }
    return false;
  }
}
