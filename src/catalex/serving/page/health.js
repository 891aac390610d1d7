// How evenly the identifiers use their codes, counted over the live catalogue.

import { get } from "./api.js";
import { byId, drawing, make, percent, plural } from "./parts.js";
import { attempt } from "./state.js";

const number = (value, digits = 2) => value == null ? "–" : value.toFixed(digits);

function level(facts, place) {
  const most = Math.max(...facts.counts, 1);
  const shapes = facts.counts.map((count, code) => ({
    x: code, y: 100 - 100 * count / most, width: 0.85, height: 100 * count / most,
    title: `code ${code}: ${plural(count, "item")}`,
  }));
  return [
    make("h3", {}, `Code ${place + 1} `, make("small", {},
      `${facts.used} of ${facts.size} codes in use; as even as ${number(facts.perplexity, 1)} equally used ones`)),
    drawing(facts.size, 100, { class: "bars", role: "img", "aria-label": `Items of each code ${place + 1}` }, shapes),
  ];
}

export const start = () => {};

export async function enter() {
  await attempt(async () => {
    const found = await get("v1/health");
    const rows = found.depths.map((depth) => make("tr", {}, make("th", { scope: "row" }, String(depth.depth)),
      make("td", {}, depth.prefixes.toLocaleString("en")), make("td", {}, number(depth.items_per_prefix)),
      make("td", {}, depth.largest.toLocaleString("en"))));
    byId("health-body").replaceChildren(
      make("p", {}, `${plural(found.items, "item")}, of which ${found.added.toLocaleString("en")} came since the bundle was made. `
        + `${percent(found.room)} of the identifiers are in use.`),
      ...found.levels.flatMap(level),
      make("h3", {}, "Items with the same first codes"),
      make("div", { class: "scroll" }, make("table", {},
        make("thead", {}, make("tr", {}, ...["First codes", "Groups", "Items a group", "Largest group"]
          .map((name) => make("th", { scope: "col" }, name)))),
        make("tbody", {}, ...rows))));
  });
}
