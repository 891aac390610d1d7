// Compose a history and watch what the model recommends, with the probability of each step of the search.

import { get, post } from "./api.js";
import { byId, later, latest, make, percent, row, thumbnail } from "./parts.js";
import { open } from "./explore.js";
import { about, addToHistory, attempt, changeHistory, history, onHistory, say } from "./state.js";

const ask = latest((request) => post("v1/recommend", request));
const search = latest((words) => get(`v1/items?limit=8&search=${encodeURIComponent(words)}`));

function filter() {
  const wanted = {};
  if (byId("category").value) wanted.categories = [byId("category").value];
  if (byId("in-stock").checked) wanted.in_stock = true;
  const ranges = {};
  for (const input of byId("ranges").querySelectorAll("input")) {
    if (input.value === "") continue;
    ranges[input.dataset.name] = { ...ranges[input.dataset.name], [input.dataset.end]: Number(input.value) };
  }
  if (Object.keys(ranges).length) wanted.ranges = ranges;
  return wanted;
}

function drawHistory() {
  const move = (place, by) => changeHistory((entries) => {
    const [entry] = entries.splice(place, 1);
    entries.splice(place + by, 0, entry);
  });
  byId("history").replaceChildren(...history.map((entry, place) => row(
    { ...entry, title: entry.title ?? `“${entry.text}”` },
    () => entry.key && open(entry.key),
    ...(place ? [["Move up", "↑", () => move(place, -1)]] : []),
    ["Remove", "×", () => changeHistory((entries) => entries.splice(place, 1))],
  )));
  byId("history-empty").hidden = history.length > 0;
}

function steps(item) {
  const made = item.path.map(({ code, probability }) => make("span", { class: "step" },
    make("span", { class: "codes" }, String(code)),
    make("meter", { min: 0, max: 1, value: probability, "aria-label": `probability of code ${code}` }),
    percent(probability)));
  const product = item.path.reduce((sofar, { probability }) => sofar * probability, 1);
  const said = item.newcomer ? `new: chosen by its content; the model gives it ${percent(product)}`
    : `together ${percent(item.probability)}, score ${item.score.toFixed(2)}`;
  return make("div", { class: "steps" }, ...made, make("span", { class: "score" }, said));
}

async function recommend() {
  if (!history.length) {
    byId("recommended").replaceChildren(make("li", { class: "quiet" }, "Put something into the history first."));
    return;
  }
  await attempt(async () => {
    const { items } = await ask({
      history: history.map((entry) => entry.key === undefined ? { text: entry.text } : entry.key),
      k: Math.min(Math.max(Number(byId("count").value) || 10, 1), about.limits?.max_k ?? 50),
      exclude: byId("new-only").checked ? history.flatMap((entry) => entry.key ?? []) : [],
      filter: filter(),
      explain: true,
    });
    byId("recommended").replaceChildren(...items.map((item) => make("li", {},
      make("div", { class: "line" },
        make("button", { type: "button", class: "name", onclick: () => open(item.key) },
          thumbnail(item), make("span", {}, item.title), item.newcomer ? make("span", { class: "new" }, "new") : null),
        make("button", { type: "button", "aria-label": `Add to the history: ${item.title}`, title: "Add to the history",
          onclick: () => addToHistory(item) }, "+")),
      steps(item))));
    if (!items.length) byId("recommended").append(make("li", { class: "quiet" }, "No item passes the filter."));
    say(`${items.length} recommendations`);
  });
}

function drawFilters() {
  byId("category").replaceChildren(make("option", { value: "" }, "any"),
    ...about.categories.map((name) => make("option", { value: name }, name)));
  byId("category").disabled = about.categories.length === 0;
  byId("ranges").replaceChildren(...about.attributes.map((name) => make("div", { class: "line" },
    ...["min", "max"].map((end) => make("div", {},
      make("label", { for: `range-${name}-${end}` }, `${name}, ${end === "min" ? "at least" : "at most"}`),
      make("input", { id: `range-${name}-${end}`, type: "number", step: "any", "data-name": name, "data-end": end }))))));
}

export function start() {
  const again = later(100, recommend);
  onHistory(() => { drawHistory(); again(); });
  for (const id of ["category", "in-stock", "new-only", "count", "ranges"]) byId(id).addEventListener("input", again);
  byId("clear").addEventListener("click", () => changeHistory((entries) => entries.splice(0)));
  byId("text-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const text = byId("history-text").value.trim();
    if (text) addToHistory({ text });
    byId("history-text").value = "";
  });
  byId("history-search").addEventListener("input", later(150, () => attempt(async () => {
    const words = byId("history-search").value;
    const { items } = words.trim() ? await search(words) : { items: [] };
    byId("history-found").replaceChildren(...items.map((item) => row(item, () => addToHistory(item))));
  })));
}

export function enter() {
  drawFilters();
  drawHistory();
  recommend();
}
