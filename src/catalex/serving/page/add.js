// Add an item, or only see where it would land.

import { post } from "./api.js";
import { byId, codes, make, thumbnail } from "./parts.js";
import { open } from "./explore.js";
import { attempt, say } from "./state.js";
import { tree } from "./tree.js";

async function content() {
  const file = byId("new-image").files[0];
  const text = [byId("new-title").value, byId("new-text").value].filter(Boolean).join(". ");
  return { text, image: file ? await base64(file) : undefined };
}

const base64 = (file) => new Promise((resolve, reject) => {
  const reader = new FileReader();
  reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
  reader.onerror = () => reject(new Error("The picture cannot be read."));
  reader.readAsDataURL(file);
});

function near(items) {
  return make("ul", { class: "near" }, ...items.map((item) => make("li", {},
    make("button", { type: "button", onclick: () => open(item.key) }, thumbnail(item), item.title))));
}

async function tryIt() {
  await attempt(async () => {
    const found = await post("v1/tokenize", { ...(await content()), k: 8 });
    byId("landed").replaceChildren(
      make("h3", {}, "It would land at ", codes(found.identifier)),
      make("p", { class: "quiet" }, "Nothing was stored."),
      tree(found, open), make("h3", {}, "Nearest by content"), near(found.nearest));
    say(`It would get the identifier ${found.identifier.join(" ")}`);
  });
}

async function add() {
  await attempt(async () => {
    const item = {
      key: byId("new-key").value, title: byId("new-title").value,
      text: byId("new-text").value || undefined, category: byId("new-category").value || undefined,
      image: (await content()).image,
    };
    const { items: [added] } = await post("v1/items", { items: [item] });
    byId("landed").replaceChildren(
      make("h3", {}, added.title, " is in the catalogue"),
      make("p", {}, "Its identifier is ", codes(added.identifier), ". It will never change."),
      make("p", {}, make("button", { type: "button", onclick: () => open(added.key) }, "Show its path and neighbours")));
    byId("add-form").reset();
    say(`${added.title} was added`);
  });
}

export function start() {
  byId("try").addEventListener("click", () => {
    if (byId("new-title").reportValidity()) tryIt();
  });
  byId("add-form").addEventListener("submit", (event) => { event.preventDefault(); add(); });
}

export function enter() {}
