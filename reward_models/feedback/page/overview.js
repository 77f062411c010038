// How far annotation has come and how far annotators agree, renewed every few seconds while somebody looks.

import { byId, el, text } from "./dom.js";
import { Refused, get } from "./transport.js";

const SECONDS = 3;
const FIGURES = {
  raw: "agreeing pairs (raw)",
  alpha: "Krippendorff’s α",
  fleiss_kappa: "Fleiss’ κ",
  cohen_kappa: "Cohen’s κ",
  kendall_tau: "Kendall’s τ",
};
let shown = "";

async function renew() {
  try {
    if (!document.hidden) show(await get("overview/figures"));
    byId("notice").hidden = true;
  } catch (error) {
    const expired = error instanceof Refused && error.status === 401;
    byId("notice").firstElementChild.textContent = expired
      ? "The server was started anew: open its new overview link."
      : "The server cannot be reached; these figures are old.";
    byId("notice").hidden = false;
  }
  setTimeout(renew, SECONDS * 1000);
}

function show(found) {
  if (JSON.stringify(found) === shown) return; // so that a selection stays
  shown = JSON.stringify(found);
  const { progress, agreement, guidelines, overlap } = found;
  byId("share").textContent = `${progress.answers} of ${progress.wanted} answers`;
  Object.assign(byId("bar"), { max: Math.max(progress.wanted, 1), value: progress.answers, hidden: false });
  document.querySelector("main").replaceChildren(
    el("p", {}, `${progress.complete} of ${progress.items} items have all answers wanted; ${overlap} ` +
      `${overlap === 1 ? "annotator judges" : "annotators judge"} each.`),
    ...agreementParts(agreement),
    ...annotatorParts(progress.annotators, agreement),
    ...guidelinesParts(guidelines));
}

function agreementParts({ kinds, first_shown: first }) {
  const parts = Object.entries(kinds).map(([kind, one]) =>
    table(`${kind}s: ${one.answers} answers to ${one.items} items by ${one.annotators} annotators`,
      ["", "value", "95 % interval", "−1 … 0 … 1"],
      Object.entries(one.figures).map(([name, figure]) =>
        [FIGURES[name] ?? name, number(figure.value), interval(figure), strip(figure)])));
  if (parts.length === 0) parts.push(el("p", { className: "small" }, "No item has answers from two annotators yet."));
  if (first.total > 0)
    parts.push(el("p", {}, `Of two texts, the one shown first was preferred ${first.hits} of ${first.total} times: ` +
      `${number(first.share.value)}, 95 % ${interval(first.share)}. Without a bias of position it is .5.`));
  return [el("h2", {}, "Agreement"), ...parts];
}

function annotatorParts(annotators, { gold, repeats }) {
  const rows = Object.entries(annotators).map(([name, share]) =>
    [name, share.pseudonym, share.answered, share.skipped, share.left,
      share.median_seconds === null ? "–" : `${share.median_seconds.toFixed(1)} s`, tally(gold[name]), tally(repeats[name])]);
  const heads = ["name", "pseudonym", "answered", "skipped", "left", "median time", "known answers", "same again"];
  return [el("h2", {}, "Annotators"), rows.length ? table("", heads, rows) : el("p", { className: "small" }, "Nobody has come yet.")];
}

function guidelinesParts({ version, text: content }) {
  return version === 0 ? [] : [el("h2", {}, `Guidelines, version ${version}`), text(content)];
}

function table(caption, heads, rows) {
  const cells = (tag, row) => el("tr", {}, ...row.map((cell) => el(tag, {}, cell instanceof Node ? cell : String(cell))));
  return el("div", { className: "wide" }, el("table", {}, ...(caption ? [el("caption", {}, caption)] : []),
    el("thead", {}, cells("th", heads)), el("tbody", {}, ...rows.map((row) => cells("td", row)))));
}

const number = (value) => value.toFixed(3);
const interval = ({ interval }) => (interval === null ? "–" : `${number(interval[0])} to ${number(interval[1])}`);
const tally = (one) => (one ? `${one.hits} of ${one.total}` : "–");

/** A figure between -1 and 1 as a point on its interval. */
function strip({ value, interval }) {
  const at = (figure) => 50 * (Math.max(-1, Math.min(1, figure)) + 1);
  const [low, high] = interval ?? [value, value];
  const range = el("i", { className: "range" });
  Object.assign(range.style, { left: `${at(low)}%`, width: `${at(high) - at(low)}%` });
  const point = el("i", { className: "point" });
  point.style.left = `${at(value)}%`;
  return el("span", { className: "strip", "aria-hidden": "true" }, range, point);
}

renew();
