// Requests to our server, and acts (answers, undoing) that are kept until the server has confirmed them.

let csrf = "";

/** The server has refused: its status and message. */
export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** One request. Throws Refused; whatever else it throws is a failure of the network. */
async function request(path, body) {
  const options = { headers: { Accept: "application/json" }, signal: AbortSignal.timeout(20_000) };
  if (body !== undefined) {
    options.method = "POST";
    options.body = JSON.stringify(body);
    Object.assign(options.headers, { "Content-Type": "application/json", "X-CSRF-Token": csrf });
  }
  const response = await fetch(path, options);
  const reply = await response.json().catch(() => ({}));
  if (!response.ok) throw new Refused(response.status, reply.error ?? `the server says ${response.status}`);
  if (reply.csrf) csrf = reply.csrf;
  return reply;
}

export const get = (path) => request(path);
export const post = (path, body = {}) => request(path, body);

/** What may go better the next time: no network, a server that is down or busy, a link that has ended. */
const passing = (error) => !(error instanceof Refused) || error.status >= 500 || error.status === 401;

/**
 * Send until the server has answered. `waiting(message, seconds)` is told of each failure, and resolves when it is time
 * to try again. Throws Refused when the server has said no.
 */
export async function insist(send, waiting) {
  for (let seconds = 1; ; seconds = Math.min(2 * seconds, 15)) {
    try {
      return await send();
    } catch (error) {
      if (!passing(error)) throw error;
      const expired = error instanceof Refused && error.status === 401;
      const why = expired
        ? "The server was started anew: open its new link in this browser."
        : error instanceof Refused
          ? `The server has a problem (${error.message}).`
          : "The server cannot be reached.";
      await waiting(why, seconds);
    }
  }
}

/** This tab's memory, over reloads, of one annotator: drafts, and the act that is on its way. */
export class Memory {
  constructor(name) {
    this.prefix = `feedback:${name}:`;
  }
  get(key) {
    try {
      return JSON.parse(sessionStorage.getItem(this.prefix + key));
    } catch {
      return null;
    }
  }
  set(key, value) {
    try {
      sessionStorage.setItem(this.prefix + key, JSON.stringify(value));
    } catch {
      // Full or forbidden: the page works without it, but for reloads.
    }
  }
  drop(key) {
    sessionStorage.removeItem(this.prefix + key);
  }
  clear() {
    for (const key of Object.keys(sessionStorage)) if (key.startsWith(this.prefix)) sessionStorage.removeItem(key);
  }
}

/** An act with an id of its own: the server does it once, however often it is sent. */
export const newAct = (path, body) => ({ path, body: { ...body, submission: randomId() } });

/** As crypto.randomUUID, which browsers withhold from pages of other machines without TLS. */
function randomId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
