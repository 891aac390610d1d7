// Search items; look at one: its identifier, its path, its nearest items.

import { get, post } from "./api.js";
import { byId, codes, later, latest, make, row, thumbnail } from "./parts.js";
import { addToHistory, attempt, say } from "./state.js";
import { tree } from "./tree.js";

const search = latest((words) => get(`v1/items?limit=30&search=${encodeURIComponent(words)}`));
const look = latest((key) => get(`v1/path?key=${encodeURIComponent(key)}`));
let chosen = null;

export const open = (key) => { location.hash = `explore/${encodeURIComponent(key)}`; };

async function list() {
  await attempt(async () => {
    const { items } = await search(byId("search").value);
    byId("found").replaceChildren(...items.map((item) => {
      const made = row(item, () => open(item.key), ["Add to the history", "+", () => addToHistory(item)]);
      made.dataset.key = item.key;
      return made;
    }));
    if (!items.length) byId("found").append(make("li", { class: "quiet" }, "No item has these words."));
    say(`${items.length} items found`);
    mark();
  });
}

function mark() {
  for (const line of byId("found").children) line.classList.toggle("chosen", line.dataset.key === chosen);
}

function facts(item) {
  const lines = [
    ["Item id", item.key],
    ["Identifier", codes(item.identifier)],
    ["Categories", (item.categories ?? []).join(", ")],
    ["In stock", item.in_stock ? "yes" : "no"],
    ...Object.entries(item.attributes ?? {}).map(([name, value]) => [name, String(value)]),
  ];
  return make("dl", {}, ...lines.filter(([, value]) => value != null && value !== "")
    .flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
}

async function show(key) {
  chosen = key;
  mark();
  await attempt(async () => {
    const path = await look(key);
    const near = await post("v1/similar", { item: key, k: 8 });
    if (chosen !== key) return;
    byId("item").replaceChildren(
      make("h3", {}, path.item.title),
      thumbnail(path.item, "large") ?? "",
      facts(path.item),
      make("p", {}, make("button", { type: "button", onclick: () => addToHistory(path.item) }, "Add to the history")),
      tree(path, open),
      make("h3", {}, "Nearest by content"),
      make("ul", { class: "near" }, ...near.items.map((item) => make("li", {},
        make("button", { type: "button", onclick: () => open(item.key) }, thumbnail(item), item.title)))),
    );
  });
}

export function start() {
  byId("search").addEventListener("input", later(150, list));
  byId("search").form.addEventListener("submit", (event) => { event.preventDefault(); list(); });
}

let listed = false;

export function enter(key) {
  if (!listed) { listed = true; list(); }
  if (key) show(key);
}
