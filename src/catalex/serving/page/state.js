// What the views share: the history that is being composed, messages, and what the service says of itself.

import { NeedsKey } from "./api.js";
import { byId, Overtaken } from "./parts.js";

export const about = {};
export const history = []; // {key, title, has_image} or {text}

const listeners = [];
export const onHistory = (action) => listeners.push(action);

export function changeHistory(change) {
  change(history);
  byId("basket").hidden = history.length === 0;
  byId("basket").textContent = history.length;
  byId("basket").setAttribute("aria-label", `${history.length} in the history`);
  for (const listener of listeners) listener();
}

export function addToHistory(item) {
  changeHistory((entries) => entries.push(item));
  say(`${item.title ?? item.text} is in the history.`);
}

// Told to screen readers only.
export function say(text) {
  byId("said").textContent = text;
}

export function complain(text) {
  byId("message").textContent = text;
  byId("message").hidden = !text;
}

// Runs what a user asked for; a failure becomes a sentence on the page.
export async function attempt(action) {
  try {
    const result = await action();
    complain("");
    return result;
  } catch (error) {
    if (error instanceof Overtaken) return undefined;
    if (error instanceof NeedsKey) {
      byId("key-form").hidden = false;
      byId("key").focus();
    }
    complain(error.message);
    return undefined;
  }
}
