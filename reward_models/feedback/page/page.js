// Judging: sign in, then one question after the other. What is entered is kept over reloads until the server has it.

import { ask } from "./questions.js";
import { byId, el, text } from "./dom.js";
import { Memory, Refused, get, insist, newAct, post } from "./transport.js";

const main = document.querySelector("main");
const [nav, footer] = [document.querySelector("nav"), document.querySelector("footer")];
let me; // the session: name, invited
let memory; // of the annotator in this tab
let task = null;
let question = null;
let form = null; // around the question
let busy = false; // an act is on its way

// ---------------------------------------------------------------- coming and going

async function start() {
  me = await insist(() => get("api/session"), waiting);
  say("");
  if (me.name === null) welcome();
  else await enter();
}

function welcome(message = "") {
  [task, question, form] = [null, null, null];
  nav.hidden = footer.hidden = byId("bar").hidden = true;
  byId("share").textContent = "";
  main.replaceChildren(byId("welcome").content.cloneNode(true));
  const name = byId("name");
  name.value = me.invited ?? "";
  name.readOnly = me.invited !== null;
  main.querySelector("form").addEventListener("submit", (event) => {
    event.preventDefault();
    alone(async () => {
      const reply = await insist(() => post("api/sign-in", { name: name.value }), waiting);
      me = reply;
      await enter(reply);
    });
  });
  name.focus();
  say(message);
}

async function enter(state) {
  memory = new Memory(me.name);
  byId("show-me").textContent = me.name;
  byId("me-title").textContent = me.name;
  nav.hidden = false;
  const act = memory.get("act");
  if (act !== null) await deliver(act);
  else show(state ?? (await insist(() => post("api/task"), waiting)));
}

/** Somebody has signed in or out in another tab, or the server has started anew. What is on its way stays in memory. */
async function whoIsThere() {
  const name = me?.name;
  me = await insist(() => get("api/session"), waiting);
  if (me.name === name) return true;
  if (me.name === null) welcome(`Sign in again as “${name}”: what you entered is kept.`);
  else {
    await enter();
    say(`Here “${me.name}” has signed in. What “${name}” entered is kept, and sent when “${name}” signs in here again.`);
  }
  return false;
}

// ---------------------------------------------------------------- acts

/** One thing at a time: what is pressed meanwhile does nothing. */
async function alone(work) {
  if (busy) return;
  busy = true;
  freeze(true);
  try {
    await work();
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    if (error.status !== 403) say(sentence(error.message));
    else if (await whoIsThere()) say(`${sentence(error.message)} Please try again.`);
  } finally {
    busy = false;
    freeze(false);
  }
}

function freeze(frozen) {
  if (form !== null) form.disabled = frozen;
  for (const button of footer.querySelectorAll("button")) button.disabled = frozen;
  main.setAttribute("aria-busy", String(frozen));
}

/** Send an act, until the server has it or says no. It is kept meanwhile, so that a reload sends the same one. */
async function deliver(act, renewed = false) {
  memory.set("act", act);
  say("");
  let state;
  try {
    state = await insist(() => post(act.path, act.body), waiting);
  } catch (error) {
    if (error.status === 403 && !renewed) {
      if (await whoIsThere()) await deliver(act, true);
      return;
    }
    if (!(error instanceof Refused) || error.status === 403) throw error;
    memory.drop("act");
    // Answered already, in another window say, or no longer this annotator's: go on with what is next.
    if (error.status === 404 || error.status === 409 || task === null) show(await insist(() => post("api/task"), waiting));
    say(sentence(error.message));
    return;
  }
  memory.drop("act");
  for (const kept of ["draft", "reason"]) memory.drop(`${kept}:${act.body.task}`);
  show(state);
  say(state.undone === false ? "There is nothing to undo." : "");
}

function submit() {
  if (busy) return;
  if (task === null) alone(async () => show(await insist(() => post("api/task"), waiting)));
  else if (question.answer() === null) say(question.missing);
  else alone(() => deliver(newAct("api/answer", { task: task.id, answer: question.answer() })));
}

const undo = () => alone(() => deliver(newAct("api/undo", {})));

function skip() {
  if (task === null || busy) return;
  byId("reason").value = memory.get(`reason:${task.id}`) ?? task.previous?.skip ?? "";
  byId("skipping").returnValue = "";
  byId("skipping").showModal();
}

byId("reason").oninput = () => memory.set(`reason:${task.id}`, byId("reason").value);

byId("skipping").addEventListener("close", () => {
  const answer = { skip: byId("reason").value };
  if (byId("skipping").returnValue === "skip") alone(() => deliver(newAct("api/answer", { task: task.id, answer })));
});

// ---------------------------------------------------------------- what is shown

function show(state) {
  task = state.task;
  showShare(state.share);
  footer.hidden = false;
  byId("skip").hidden = task === null;
  byId("submit").firstChild.textContent = task === null ? "Look again " : "Submit ";
  byId("submit").querySelector("kbd").textContent = task?.kind === "demonstration" ? "Ctrl Enter" : "Enter";
  byId("show-guidelines").hidden = !task?.guidelines;
  if (task === null) {
    [question, form] = [null, null];
    showDone(state.share);
    return;
  }
  question = ask(task, memory.get(`draft:${task.id}`) ?? task.previous, changed);
  const title = el("h2", { tabIndex: -1 }, question.title);
  form = el("fieldset", { className: task.kind }, question.element);
  main.replaceChildren(
    el("section", { className: "prompt", "aria-label": "prompt" }, el("h3", {}, "Prompt"), text(task.prompt)), title, form);
  changed();
  scrollTo(0, 0);
  // On a phone, a field with the focus would call up the keyboard, over the question.
  (matchMedia("(pointer: fine)").matches && question.focus || title).focus({ preventScroll: true });
  if (task.guidelines && memory.get("guidelines") !== task.guidelines) showGuidelines();
}

function showShare({ answered, left }) {
  const total = answered + left + (task === null ? 0 : 1);
  // Roughly: at a repeat or an item whose answer is known, the exact number would not go down, and so tell.
  const rest = total === answered ? "none" : left < 10 ? "under 10" : `about ${Math.round(left / 10) * 10}`;
  byId("share").textContent = `${answered} done, ${rest} left`;
  Object.assign(byId("bar"), { max: Math.max(total, 1), value: answered, hidden: false });
}

function showDone({ answered, left }) {
  const more = left === 0 ? "" : ` ${left} more are with other people just now, and may come to you later.`;
  main.replaceChildren(
    el("div", { className: "welcome" },
      el("h2", { tabIndex: -1 }, answered ? "All done. Thank you!" : "There is nothing to do yet."),
      el("p", {}, `You have given ${answered} ${answered === 1 ? "answer" : "answers"}.${more}`)));
  main.querySelector("h2").focus({ preventScroll: true });
}

/** Keep what was entered so far. */
function changed() {
  const draft = question.draft();
  if (Object.keys(draft).length) memory.set(`draft:${task.id}`, draft);
  const ready = question.answer() !== null;
  byId("submit").classList.toggle("ready", ready);
  if (ready && !busy) say("");
}

async function showGuidelines() {
  const dialog = byId("guidelines");
  if (!task?.guidelines || dialog.open) return;
  const { version, text: content } = await insist(() => get(`api/guidelines/${task.guidelines}`), waiting);
  say("");
  const renewed = (memory.get("guidelines") ?? version) !== version;
  byId("guidelines-title").textContent = `Guidelines, version ${version}${renewed ? " (new)" : ""}`;
  dialog.querySelector(".text").textContent = content;
  memory.set("guidelines", version);
  if (!dialog.open) dialog.showModal();
}

function showKeys() {
  const always = [["Enter", "submit"], ["U", "undo the last answer"], ["S", "skip"], ["G", "guidelines"], ["?", "these keys"]];
  const keys = question === null ? always : [...question.keys, ...always.slice(task.kind === "demonstration" ? 1 : 0)];
  byId("keys").querySelector("dl").replaceChildren(
    ...keys.flatMap(([pressed, meaning]) => [
      el("dt", {}, ...pressed.split(" ").map((word) => (/^(or|…)$/.test(word) ? ` ${word} ` : el("kbd", {}, word)))),
      el("dd", {}, meaning)]));
  byId("keys").showModal();
}

// ---------------------------------------------------------------- messages

const sentence = (message) => `${message[0].toUpperCase()}${message.slice(1)}.`;

const notice = byId("notice");
const again = notice.querySelector("button");

function say(message) {
  notice.firstElementChild.textContent = message;
  notice.hidden = message === "";
  again.hidden = true;
}

/** Say why something was not sent, and resolve when it is time to try again, or when the annotator or the network says. */
function waiting(why, seconds) {
  return new Promise((resolve) => {
    say(`${why} What you entered is kept; trying again in ${seconds} s.`);
    const go = () => {
      clearTimeout(timer);
      removeEventListener("online", go);
      again.onclick = null;
      resolve();
    };
    const timer = setTimeout(go, seconds * 1000);
    addEventListener("online", go);
    again.textContent = "Try now";
    again.hidden = false;
    again.onclick = go;
  });
}

// ---------------------------------------------------------------- buttons and keys

/** A double click is one. */
const once = (act) => (event) => event.detail < 2 && act();

byId("submit").onclick = once(submit);
byId("undo").onclick = once(undo);
byId("skip").onclick = once(skip);
byId("skipping").querySelector(".close").onclick = () => byId("skipping").close();
byId("show-guidelines").onclick = showGuidelines;
byId("show-keys").onclick = showKeys;
byId("show-me").onclick = () => byId("me").showModal();

byId("sign-out").onclick = () => {
  byId("me").close();
  alone(async () => {
    me = await insist(() => post("api/sign-out"), waiting);
    memory.clear();
    welcome();
  });
};

byId("forget").onclick = () => {
  byId("me").close();
  byId("forgetting").returnValue = "";
  byId("forgetting").showModal();
};

byId("forgetting").addEventListener("close", () => {
  if (byId("forgetting").returnValue !== "forget") return;
  alone(async () => {
    const reply = await insist(() => post("api/forget"), waiting);
    me = reply;
    memory.clear();
    welcome(`Your name and ${reply.answers} of your answers were deleted.`);
  });
});

const SHORTCUTS = { u: undo, s: skip, g: showGuidelines, "?": showKeys };

addEventListener("keydown", (event) => {
  if (nav.hidden || event.isComposing || event.altKey || document.querySelector("dialog[open]")) return;
  const pressed = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const inText = event.target.closest?.("textarea, input[type=number]");
  if (pressed === "Enter" && (event.ctrlKey || event.metaKey || !event.target.closest?.("button, a, textarea"))) {
    if (!event.repeat) submit();
  } else if (event.ctrlKey || event.metaKey || busy) return;
  else if (inText) {
    if (pressed !== "Escape") return;
    inText.blur();
  } else if (pressed in SHORTCUTS) {
    if (!event.repeat) SHORTCUTS[pressed]();
  } else if (!question?.press(event.key.length === 1 ? pressed : event.key)) return;
  event.preventDefault();
});

alone(start);
