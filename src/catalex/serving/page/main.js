// Which view is shown; the rest is in a file for each view.

import { get, useKey } from "./api.js";
import { byId, plural } from "./parts.js";
import { about, attempt } from "./state.js";
import * as add from "./add.js";
import * as explore from "./explore.js";
import * as health from "./health.js";
import * as recommend from "./recommend.js";

const views = { explore, recommend, add, health };

function show(first = false) {
  const [name, rest] = location.hash.slice(1).split("/");
  if (name === "view") return;
  const chosen = views[name] ? name : "explore";
  for (const view of Object.keys(views)) byId(view).hidden = view !== chosen;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${chosen}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (!first && !rest) byId("view").focus({ preventScroll: true });
  let key;
  try { key = rest && decodeURIComponent(rest); } catch { key = undefined; }
  views[chosen].enter(key);
}

async function learn() {
  const loaded = await attempt(async () => Object.assign(about, await get("v1/about")));
  if (!loaded) return false;
  byId("about").textContent = `${about.domain}: ${plural(about.items, "item")}, revision ${about.revision}`;
  document.title = `catalex: ${about.domain}`;
  return true;
}

async function begin() {
  if (await learn()) show(true);
}

for (const view of Object.values(views)) view.start();
window.addEventListener("hashchange", async () => { if (await learn()) show(); });
document.addEventListener("keydown", (event) => {
  if (event.key === "/" && !/^(INPUT|TEXTAREA|SELECT)$/.test(document.activeElement.tagName)) {
    event.preventDefault();
    if (byId("explore").hidden) location.hash = "explore";
    setTimeout(() => byId("search").focus());
  }
});
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(byId("key").value);
  byId("key-form").hidden = true;
  begin();
});
begin();
