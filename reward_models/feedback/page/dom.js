// Elements, made of strings that are only ever text.

export const byId = (id) => document.getElementById(id);

/** An element with properties (and data-* attributes, aria-*, role); children are elements or strings, which become text. */
export function el(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
}

/** Somebody's text: as it is, in its own direction, which cannot spill into its neighbours. */
export const text = (content) => el("div", { className: "text", dir: "auto", textContent: content });

export const key = (label) => el("kbd", {}, label);
