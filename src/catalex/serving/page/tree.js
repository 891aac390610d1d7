// An item's identifier as a path from the root of the code tree, with its neighbours at each depth.

import { drawing, make, plural, thumbnail } from "./parts.js";

function twigs(level) {
  const most = level.used.reduce((sum, [, count]) => sum + count, 0) || 1;
  let left = 0;
  const shapes = level.used.map(([code, count]) => {
    const shape = {
      x: left, y: 0, width: Math.max(count - 0.12 * Math.min(count, most / 100), 0.2), height: 10,
      title: `code ${code}: ${plural(count, "item")}`,
    };
    if (code === level.code) shape.class = "own";
    left += count;
    return shape;
  });
  const label = `${plural(level.used.length, "code")} in use here; the coloured one leads to the item`;
  return make("div", { class: "twigs", role: "img", "aria-label": label },
    drawing(most, 10, { "aria-hidden": "true" }, shapes));
}

// `path.levels[d]`: code, items below it, codes in use beside it, neighbours that part here.
export function tree(path, choose) {
  const levels = path.levels.map((level, depth) => {
    const last = depth === path.levels.length - 1;
    const beside = level.neighbours.map((item) =>
      make("li", {}, make("button", { type: "button", onclick: () => choose(item.key) },
        thumbnail(item), item.title)));
    const below = `${plural(level.items, "item")} ${last ? "with this identifier" : "below"}`;
    const who = depth === 0 ? "Nearest items with another first code:"
      : depth === 1 ? "Nearest items with the same first code that part here:"
        : `Nearest items with the same first ${depth} codes that part here:`;
    return make("li", {},
      make("span", { class: "node", "aria-hidden": "true" }, String(level.code)),
      make("h4", {}, `Code ${depth + 1}: ${level.code} `, make("small", {}, `of ${level.size}; ${below}`)),
      twigs(level),
      beside.length ? make("p", { class: "quiet" }, who) : null,
      beside.length ? make("ul", { class: "near" }, ...beside) : null);
  });
  return make("ol", { class: "path", "aria-label": "Path in the code tree, from the root" }, ...levels);
}
