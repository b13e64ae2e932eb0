// The connection to the dashboard: a snapshot, then every event after it, across every interruption, and the output of
// the session that is shown. One stream has both, so that a tab needs one connection; the page opens it again by
// itself, after the last event and the last output that it saw.
//
// A hidden page closes its stream. Of the visible ones, some keep theirs open; the others take turns with it.

import { parse } from "./json.js";
import { Slot } from "./slot.js";

const RETRY_MS = 1000;
const RETRY_MAX_MS = 10_000;
const SILENCE_MAX_MS = 15_000; // the dashboard sends something every 5 s
const CHECK_MS = 2000;
const HIDDEN_MS = 5000;
const TURN_MS = 1000; // how long a page without a slot keeps its stream, and how long it then pauses
const PAUSE_MS = 2000;

export class Feed {
  /** `onPhase(phase, detail)`: loading, live, reconnecting, paused, refused, or problem. */
  constructor(store, onPhase) {
    this.store = store;
    this.onPhase = onPhase;
    this.position = ""; // a position token: opaque
    this.phase = "";
    this.source = null;
    this.heardAt = 0;
    this.hidden = false; // for so long that it has no stream
    this.retryMs = RETRY_MS;
    this.timer = 0;
    this.slot = new Slot();
    this.output = null; // { id, position, on }: the session whose output is followed
    this.onReset = () => {};
  }

  start() {
    document.addEventListener("visibilitychange", () => this.#onVisibility());
    addEventListener("online", () => this.source === null && this.#again(0));
    setInterval(() => this.#check(), CHECK_MS);
    this.#onVisibility();
    this.load();
  }

  /** Follow the output of that session, from its beginning, and of no other: `on(name, data)`; null: of none. */
  watch(id, on) {
    this.output = id === null ? null : { id, position: "", on };
    if (this.source !== null || this.phase === "live") this.follow();
  }

  /** Load a snapshot, then follow from its position. */
  async load() {
    this.#close();
    if (this.hidden) return undefined;
    if (!this.store.loaded) this.#setPhase("loading");
    let answer;
    try {
      answer = await fetch("/api/sessions");
    } catch {
      this.#setPhase("reconnecting");
      return this.#again();
    }
    if (answer.status === 401 || answer.status === 403) return this.#setPhase("refused");
    if (!answer.ok) {
      const body = await answer.json().catch(() => null);
      this.#setPhase("problem", body?.error?.message ?? `the dashboard responded with status ${answer.status}`);
      return this.#again();
    }
    try {
      const snapshot = parse(await answer.text());
      this.store.restart(snapshot);
      this.position = snapshot.position_token;
    } catch {
      this.#setPhase("reconnecting");
      return this.#again();
    }
    this.onReset();
    return this.follow();
  }

  /** Open the stream after the last event and output seen; not while the page is hidden. */
  follow() {
    this.#close();
    if (this.hidden) return;
    this.slot.take();
    this.heardAt = performance.now();
    const source = new EventSource(this.#address());
    this.source = source;
    const on = (name, handler) =>
      source.addEventListener(name, (message) => {
        this.heardAt = performance.now();
        if (this.source === source) handler(message);
      });
    on("open", () => {
      this.retryMs = RETRY_MS;
      this.timer = setTimeout(() => this.#pause(), TURN_MS);
      this.#setPhase("live");
    });
    on("change", (message) => {
      this.position = message.lastEventId;
      this.store.apply(parse(message.data));
    });
    on("state", (message) => {
      this.store.state = JSON.parse(message.data);
      this.#setPhase("live");
    });
    on("managers", (message) => {
      this.store.managers = JSON.parse(message.data);
    });
    on("beat", () => {});
    on("reset", () => this.load());
    for (const name of ["output", "output_reset", "output_problem", "output_caught_up"]) on(name, (message) => this.#onOutput(name, message));
    on("error", () => {
      const refused = source.readyState === EventSource.CLOSED;
      this.#close();
      this.#setPhase("reconnecting");
      if (refused) this.#again();
      else this.timer = setTimeout(() => this.follow(), RETRY_MS);
    });
  }

  #address() {
    const asked = new URLSearchParams({ after: this.position });
    if (this.output !== null) {
      asked.set("session", this.output.id);
      asked.set("output_after", this.output.position);
    }
    return `/api/stream?${asked}`;
  }

  #onOutput(name, message) {
    const data = parse(message.data);
    if (name === "output_reset") this.output.position = "";
    else if (name === "output" && !data.ephemeral) this.output.position = message.lastEventId;
    this.output.on(name, data);
  }

  /** Without a slot: leave the connection to other tabs for a while. */
  #pause() {
    if (this.slot.held) return;
    this.#close();
    this.timer = setTimeout(() => this.follow(), PAUSE_MS);
  }

  #again(afterMs = this.retryMs) {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.load(), afterMs);
    this.retryMs = Math.min(this.retryMs * 2, RETRY_MAX_MS);
  }

  #check() {
    if (this.source === null || performance.now() - this.heardAt < SILENCE_MAX_MS) return;
    this.#setPhase("reconnecting");
    this.follow();
  }

  #onVisibility() {
    clearTimeout(this.hiddenTimer);
    if (document.visibilityState === "hidden") {
      this.hiddenTimer = setTimeout(() => this.#leave(), HIDDEN_MS);
    } else if (this.hidden) {
      this.hidden = false;
      this.#setPhase("reconnecting");
      if (this.store.loaded) this.follow();
      else this.load();
    }
  }

  #leave() {
    if (this.phase === "refused") return;
    this.hidden = true;
    this.#close();
    this.slot.release();
    this.#setPhase("paused");
  }

  #close() {
    clearTimeout(this.timer);
    this.source?.close();
    this.source = null;
  }

  #setPhase(shown, detail = "") {
    const phase = this.hidden ? "paused" : shown; // a request may have been under way
    this.phase = phase;
    this.onPhase(phase, detail);
  }
}
