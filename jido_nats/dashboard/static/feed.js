// The connection to the dashboard: a snapshot, then every event after it, across every interruption.
//
// The browser reconnects by itself with the last id that it saw (Last-Event-ID); if it gives up, or the page closed
// the stream while it was hidden, the page sends that id itself.

import { parse } from "./json.js";

const RETRY_MS = 1000;
const RETRY_MAX_MS = 10_000;
const SILENCE_MAX_MS = 15_000; // the dashboard sends something every 5 s
const CHECK_MS = 2000;
const HIDDEN_MS = 30_000; // a browser opens at most six connections to a host, shared by all its tabs

export class Feed {
  /** `onPhase(phase, detail)`: loading, live, reconnecting, paused, refused, or problem. */
  constructor(store, onPhase) {
    this.store = store;
    this.onPhase = onPhase;
    this.position = ""; // a position token: opaque
    this.phase = "";
    this.source = null;
    this.heardAt = 0;
    this.retryMs = RETRY_MS;
    this.timer = 0;
    this.onReset = () => {};
  }

  start() {
    document.addEventListener("visibilitychange", () => this.#onVisibility());
    addEventListener("online", () => this.source === null && this.#again(0));
    setInterval(() => this.#check(), CHECK_MS);
    this.load();
  }

  /** Load a snapshot, then follow from its position. */
  async load() {
    this.#close();
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

  /** Open the stream after the last event seen. */
  follow() {
    this.#close();
    this.heardAt = performance.now();
    const source = new EventSource(`/api/stream?after=${encodeURIComponent(this.position)}`);
    this.source = source;
    const on = (name, handler) =>
      source.addEventListener(name, (message) => {
        this.heardAt = performance.now();
        if (this.source === source) handler(message);
      });
    on("open", () => {
      this.retryMs = RETRY_MS;
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
    on("error", () => {
      this.#setPhase("reconnecting");
      if (source.readyState === EventSource.CLOSED) this.#again();
    });
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
      this.hiddenTimer = setTimeout(() => {
        if (this.source === null) return;
        this.#close();
        this.#setPhase("paused");
      }, HIDDEN_MS);
    } else if (this.phase === "paused") {
      this.#setPhase("reconnecting");
      this.follow();
    }
  }

  #close() {
    clearTimeout(this.timer);
    this.source?.close();
    this.source = null;
  }

  #setPhase(phase, detail = "") {
    this.phase = phase;
    this.onPhase(phase, detail);
  }
}
