// The four kinds of question. Each is { title, element, keys, missing, draft(), answer(), press(key) }:
//   keys       what to press, and what it does
//   missing    what to say when there is no answer yet
//   draft()    what was entered so far, in the form of an answer
//   answer()   the answer as the server reads it, or null
//   press(key) whether the key meant something here
// They are made of a task and of what was entered before (a draft or an answer); `changed` is called at every change.

import { el, key, text } from "./dom.js";

export const ask = (task, before, changed) => KINDS[task.kind](task, before ?? {}, changed);

const KINDS = { rating, comparison, ranking, demonstration };

function rating(task, before, changed) {
  const [low, high] = task.scale;
  const steps = Number.isInteger(low) && Number.isInteger(high) && high - low >= 2 && high - low <= 10;
  const points = steps ? Array.from({ length: high - low + 1 }, (_, point) => low + point) : null;
  let value = before.rating ?? null;
  const controls = steps ? scaleOfPoints() : slider();
  set(value);

  function set(chosen) {
    value = chosen;
    controls.show(chosen);
  }
  function choose(chosen) {
    set(Math.min(high, Math.max(low, chosen)));
    changed();
  }
  function scaleOfPoints() {
    const radios = points.map((point) =>
      el("input", { type: "radio", name: "answer", value: point, onchange: () => choose(point) }),
    );
    const labels = radios.map((radio, place) => el("label", {}, radio, el("span", {}, String(points[place]))));
    return {
      element: el("div", { className: "points", role: "radiogroup", "aria-label": "rating" },
        el("span", { className: "end" }, "worst"), el("div", { className: "row" }, ...labels),
        el("span", { className: "end" }, "best")),
      show: (chosen) => radios.forEach((radio, place) => (radio.checked = points[place] === chosen)),
    };
  }
  function slider() {
    const ends = { min: low, max: high, step: "any" };
    const number = el("input", { type: "number", ...ends, "aria-label": "rating",
      oninput: () => number.value !== "" && number.validity.valid && choose(number.valueAsNumber) });
    // Pressed where it stands already, it has no new value, and yet this is an answer.
    const range = el("input", { type: "range", ...ends, step: (high - low) / 100, "aria-label": "rating",
      oninput: () => choose(range.valueAsNumber), onpointerup: () => choose(range.valueAsNumber) });
    return {
      element: el("div", { className: "slider" }, el("span", { className: "end" }, `${low} worst`), range,
        el("span", { className: "end" }, `best ${high}`), number),
      show: (chosen) => {
        range.classList.toggle("unset", chosen === null);
        range.value = chosen ?? (low + high) / 2;
        if (document.activeElement !== number) number.value = chosen === null ? "" : Number(chosen.toPrecision(6));
      },
    };
  }
  const step = steps ? 1 : (high - low) / 100;
  const arrows = { ArrowLeft: -step, ArrowRight: step };
  return {
    title: "How good is this text?",
    element: el("div", {}, card(task.completions[0]), controls.element),
    keys: [...(steps ? [[`${low} … ${high}`, "rate"]] : []), ["← →", "a little worse, better"]],
    missing: "Rate the text first.",
    draft: () => (value === null ? {} : { rating: value }),
    answer: () => (value === null ? null : { rating: value }),
    press(pressed) {
      if (pressed in arrows) choose(value === null ? (steps ? Math.round((low + high) / 2) : (low + high) / 2) : value + arrows[pressed]);
      else if (steps && points.includes(digit(pressed))) choose(digit(pressed));
      else if (steps && pressed === "0" && low > 0 && high === 10) choose(10);
      else return false;
      return true;
    },
  };
}

function comparison(task, before, changed) {
  const radio = (place, label, shortcut) => {
    const input = el("input", { type: "radio", name: "answer", onchange: changed });
    return { input, label: el("label", { className: "head" }, input, el("span", {}, label), key(shortcut)), place };
  };
  const [first, second, tie] = [radio(0, "First", "1"), radio(1, "Second", "2"), radio(null, "Equally good", "0")];
  const all = [first, second, tie];
  tie.label.className = "tie";
  if (before.tie) tie.input.checked = true;
  else if (before.preferred !== undefined) all[before.preferred].input.checked = true;
  const choose = (option) => {
    option.input.checked = true;
    changed();
  };
  const answer = () => {
    const chosen = all.find((option) => option.input.checked);
    if (chosen === undefined) return null;
    return chosen.place === null ? { tie: true } : { preferred: chosen.place };
  };
  const shortcuts = { 1: first, ArrowLeft: first, 2: second, ArrowRight: second, 0: tie, t: tie, "=": tie };
  return {
    title: "Which text is better?",
    element: el("div", { role: "radiogroup", "aria-label": "the better text" },
      el("div", { className: "pair" },
        ...[first, second].map((option) => card(task.completions[option.place], option.label, () => choose(option)))),
      tie.label),
    keys: [["1 or ←", "the first is better"], ["2 or →", "the second is better"], ["0 or T", "they are equally good"]],
    missing: "Choose a text first, or “equally good”.",
    draft: () => answer() ?? {},
    answer,
    press(pressed) {
      const option = shortcuts[pressed];
      if (option !== undefined) choose(option);
      return option !== undefined;
    },
  };
}

function ranking(task, before, changed) {
  const count = task.completions.length;
  let order = before.ranking ?? [];
  let pressedLast = null;
  const places = task.completions.map(() => el("span", { className: "place" }));
  const buttons = places.map((place, index) =>
    el("button", { type: "button", className: "head", onclick: (event) => press(index, event) },
      place, el("span", {}, `Text ${index + 1}`), ...(index < 9 ? [key(String(index + 1))] : [])));
  show();

  function toggle(index) {
    if (order.includes(index)) order = order.filter((other) => other !== index);
    else order = [...order, index];
    show();
    changed();
  }
  /** A double click is one; a quick press on the next text is another. */
  function press(index, event) {
    if (event.detail < 2 || index !== pressedLast) toggle(index);
    pressedLast = index;
  }
  function show() {
    buttons.forEach((button, index) => {
      const place = order.indexOf(index);
      places[index].textContent = place < 0 ? "" : String(place + 1);
      button.setAttribute("aria-pressed", String(place >= 0));
      button.setAttribute("aria-label", `text ${index + 1}: ${place < 0 ? "no place yet" : `place ${place + 1}`}`);
    });
  }
  return {
    title: "Which is best, and which comes next?",
    element: el("div", {},
      el("p", { className: "small" }, "Press the texts in order, the best first. Pressed again, a text loses its place."),
      el("div", { className: "list" },
        ...task.completions.map((content, index) => card(content, buttons[index], (event) => press(index, event))))),
    keys: [[`1 … ${Math.min(count, 9)}`, "give this text the next place, or take its place away"]],
    missing: "Give every text a place first.",
    draft: () => ({ ranking: order }),
    answer: () => (order.length === count ? { ranking: order } : null),
    press(pressed) {
      const index = digit(pressed) - 1;
      if (!(index >= 0 && index < count)) return false;
      toggle(index);
      return true;
    },
  };
}

function demonstration(task, before, changed) {
  const field = el("textarea", { value: before.text ?? "", rows: 8, maxLength: 100_000, dir: "auto", oninput: changed,
    "aria-label": "your text", placeholder: "Your text" });
  return {
    title: "What would you write?",
    element: el("div", {}, field),
    keys: [["Ctrl Enter", "submit"], ["Esc", "leave the text; then the other keys work"]],
    missing: "Write a text first, or skip.",
    focus: field,
    draft: () => ({ text: field.value }),
    answer: () => (field.value.trim() === "" ? null : { text: field.value }),
    press: () => false,
  };
}

/** A text with its head; a press anywhere on it chooses it, unless it is to select words or to scroll. */
function card(content, head = null, choose = null) {
  const body = text(content);
  body.tabIndex = 0; // so that keys can scroll a long one
  const element = el("article", { className: "card" }, ...(head === null ? [] : [head]), body);
  if (choose !== null) {
    element.classList.add("choice");
    body.addEventListener("click", (event) => {
      if (getSelection().isCollapsed && !element.closest("fieldset:disabled")) choose(event);
    });
  }
  return element;
}

const digit = (pressed) => (/^[0-9]$/.test(pressed) ? Number(pressed) : NaN);
