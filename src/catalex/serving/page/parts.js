// Small pieces of the page. Text is only ever set as text: no title can bring markup with it.

import { picture } from "./api.js";

export const byId = (id) => document.getElementById(id);

export function make(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onclick") made.addEventListener("click", value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value != null) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child != null));
  return made;
}

const SVG = "http://www.w3.org/2000/svg";

export function drawing(width, height, attributes, shapes) {
  const made = document.createElementNS(SVG, "svg");
  made.setAttribute("viewBox", `0 0 ${width} ${height}`);
  made.setAttribute("preserveAspectRatio", "none");
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  for (const shape of shapes) {
    const { title, ...rest } = shape;
    const rectangle = document.createElementNS(SVG, "rect");
    for (const [name, value] of Object.entries(rest)) rectangle.setAttribute(name, value);
    if (title) {
      const text = document.createElementNS(SVG, "title");
      text.textContent = title;
      rectangle.append(text);
    }
    made.append(rectangle);
  }
  return made;
}

export function thumbnail(item, more = "") {
  if (!item.has_image) return null;
  const image = make("img", { class: `picture ${more}`, alt: "" });
  picture(item.key).then((address) => { image.src = address; }).catch(() => image.remove());
  return image;
}

export const codes = (identifier) => make("span", { class: "codes" }, identifier.join(" · "));

export const percent = (share) =>
  share >= 0.0995 ? `${Math.round(100 * share)} %` : share >= 0.0001 ? `${(100 * share).toPrecision(2)} %` : "< 0.01 %";

export const plural = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;

// A row with an item's name as a button, and further buttons [label, sign, action].
export function row(item, choose, ...actions) {
  const name = make("button", { type: "button", class: "name", onclick: choose },
    thumbnail(item), make("span", {}, item.title));
  const buttons = actions.map(([label, sign, action]) =>
    make("button", { type: "button", "aria-label": `${label}: ${item.title}`, title: label, onclick: action }, sign));
  return make("li", {}, name, ...buttons);
}

export function later(milliseconds, action) {
  let waiting;
  return (...values) => {
    clearTimeout(waiting);
    waiting = setTimeout(() => action(...values), milliseconds);
  };
}

// The latest call wins: answers of earlier ones that come late are dropped.
export function latest(fetching) {
  let number = 0;
  return async (...values) => {
    const mine = ++number;
    const answer = await fetching(...values);
    if (mine !== number) throw new Overtaken();
    return answer;
  };
}

export class Overtaken extends Error {}
