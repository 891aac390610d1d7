// Requests to the service. Every failure becomes an Error whose message is the service's own sentence.

const KEY = "catalex-key";

export class NeedsKey extends Error {}

export function useKey(key) {
  sessionStorage.setItem(KEY, key);
}

async function ask(method, path, body) {
  const headers = {};
  const key = sessionStorage.getItem(KEY);
  if (key) headers["X-API-Key"] = key;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let answer;
  try {
    answer = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
  } catch {
    throw new Error("The service does not answer. Is it still running?");
  }
  if (answer.ok) return answer;
  let message = `The service answered ${answer.status}.`;
  try {
    message = (await answer.json()).error.message;
  } catch { /* not ours: the status has to do */ }
  throw answer.status === 401 ? new NeedsKey(message) : new Error(message);
}

export const get = async (path) => (await ask("GET", path)).json();
export const post = async (path, body) => (await ask("POST", path, body)).json();

const pictures = new Map();

// The address of an item's picture for <img>; fetched by hand, since <img> cannot send a key.
export function picture(key) {
  if (!pictures.has(key)) {
    if (pictures.size > 300) {
      const [oldest, address] = pictures.entries().next().value;
      pictures.delete(oldest);
      address.then((made) => URL.revokeObjectURL(made)).catch(() => {});
    }
    const made = ask("GET", `v1/picture?key=${encodeURIComponent(key)}`)
      .then((answer) => answer.blob())
      .then((blob) => URL.createObjectURL(blob));
    made.catch(() => pictures.delete(key));
    pictures.set(key, made);
  }
  return pictures.get(key);
}
