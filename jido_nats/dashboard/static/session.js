// One session: its record, its timeline and events, its output, and commands.

import { ApiError, command, getSession, newMessageId } from "./api.js";
import { announce, byId, chip, el, setText } from "./dom.js";
import { age, attemptText, duration, FAILURES, moment, pretty, SESSION_ID, words } from "./format.js";
import { parse } from "./json.js";

const SHOWN_MAX = 1000; // events, and outputs, shown at one time
const NO_OUTPUT = "No output yet.";
const SEGMENTS_MAX = 400;
const NEAR_END_PX = 40;
const MS = (time) => Date.parse(time);

export class SessionView {
  constructor(store, feed, askForEnd) {
    this.store = store;
    this.feed = feed;
    this.askForEnd = askForEnd;
    this.id = null;
    store.listeners.add((event) => this.#onEvent(event));
    byId("idle").addEventListener("click", () => this.#act("idle"));
    byId("activate").addEventListener("click", () => this.#act("activate"));
    byId("terminate").addEventListener("click", () => this.askForEnd(this.id));
    byId("copy-id").addEventListener("click", () => this.#copyId());
    byId("send-form").addEventListener("submit", (event) => this.#onSend(event));
    byId("send-content").addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("send-form").requestSubmit();
    });
  }

  /** Show a session, and keep it updated until `close`. */
  async open(id) {
    this.id = id;
    Object.assign(this, { record: null, events: new Map(), missing: false, outputs: [] });
    setText(byId("session-id"), id);
    setText(byId("session-error"), "");
    setText(byId("action-error"), "");
    setText(byId("send-error"), "");
    byId("send-content").value = "";
    this.messageId = null;
    this.#clearOutput();
    this.#draw();
    this.feed.watch(SESSION_ID.test(id) ? id : null, (name, data) => this.#onOutput(name, data));
    await this.load();
  }

  /** Load the record and the history (again); events that arrive meanwhile are kept. */
  async load() {
    const id = this.id;
    byId("session").setAttribute("aria-busy", "true");
    try {
      const { record, history } = await getSession(id);
      if (this.id !== id) return;
      for (const event of history) this.#put(event);
      if (record && (this.record === null || record.version >= this.record.version)) this.record = record;
      setText(byId("session-error"), "");
    } catch (error) {
      if (this.id !== id) return;
      if (!(error instanceof ApiError)) throw error;
      // After an event the answer is outdated: the session was created meanwhile.
      const outdated = error.code === "not_found" && this.events.size > 0;
      this.missing = error.code === "not_found" && !outdated;
      setText(byId("session-error"), outdated ? "" : error.message);
    }
    byId("session").setAttribute("aria-busy", "false");
    this.#draw();
  }

  close() {
    this.id = null;
    this.feed.watch(null);
  }

  /** Update growing durations; called once a second while the view is shown. */
  tick() {
    if (this.id === null) return;
    this.#drawSince();
    this.#drawTimeline();
  }

  #onEvent(event) {
    if (event.session_id !== this.id) return;
    const status = this.#status();
    this.missing = false;
    setText(byId("session-error"), "");
    this.#put(event);
    this.#draw();
    if (this.#status() !== status) announce(`The session is ${this.#status()}`);
  }

  #put(event) {
    this.events.set(`${event.version}.${event.type}`, event);
  }

  #ordered() {
    const order = { session_created: 0, session_status: 1, session_terminated: 2 };
    return [...this.events.values()].sort((a, b) => a.version - b.version || (order[a.type] ?? 1) - (order[b.type] ?? 1));
  }

  /** The latest known state: the record, or an event that is newer. */
  #last() {
    const changes = this.#ordered().filter((event) => event.type === "session_created" || event.type === "session_status");
    const event = changes.at(-1);
    if (event !== undefined && event.version > (this.record?.version ?? 0)) {
      return { ...event, status: event.status ?? "initializing", updated_at: event.updated_at ?? event.created_at };
    }
    const { attempt, cause } = this.record?.run ?? {};
    return this.record && { ...this.record, attempt, cause: this.record.status === "initializing" ? cause : undefined };
  }

  #status() {
    return this.#last()?.status ?? null;
  }

  #draw() {
    const last = this.#last();
    const status = last?.status;
    const ended = status === "terminated";
    const failed = ended && FAILURES.has(last.reason);
    const again = status === "initializing" && last.attempt > 1;
    byId("session-status").replaceChildren(...(status ? [chip(status, failed)] : []));
    setText(byId("session-attempt"), last ? attemptText(last) : "");
    byId("session-actions").hidden = this.store.readOnly || !status || ended;
    byId("idle").hidden = status !== "active";
    byId("activate").hidden = status !== "idle";
    byId("terminate").disabled = status === "terminating";
    byId("send-form").hidden = this.store.readOnly || !(status === "active" || status === "idle" || again);
    this.#drawEnd(last, ended, failed, again);
    this.#drawSince();
    this.#drawRecord(last);
    this.#drawTimeline();
    this.#drawEvents();
    byId("session-body").hidden = !last;
  }

  /** Why it has ended, or why it waits for another attempt. */
  #drawEnd(last, ended, failed, again) {
    const box = byId("session-end");
    box.hidden = !ended && !again;
    if (box.hidden) return;
    box.className = failed || again ? "callout bad" : "callout";
    const parts = [el("strong", {}, again ? `Starting again: ${attemptText(last)}` : `Ended: ${words(last.reason ?? "unknown")}`)];
    if (last.forced) parts.push(el("span", { class: "tag" }, "forced"));
    if (last.output_incomplete) parts.push(el("span", { class: "tag" }, "output incomplete"));
    if (last.detail) parts.push(el("span", {}, last.detail));
    if (last.error) parts.push(el("pre", {}, last.error));
    box.replaceChildren(...parts);
  }

  #drawSince() {
    const last = this.#last();
    const since = last ? this.store.now() - MS(last.updated_at) : 0;
    setText(byId("session-since"), !last ? "" : last.status === "terminated" ? `${age(since)} ago` : `for ${age(since)}`);
  }

  #drawRecord(last) {
    if (!last) return;
    const now = this.store.now();
    const record = this.record ?? {};
    const created = this.#ordered()[0]?.created_at ?? record.created_at;
    const rows = [
      ["Version", String(last.version)],
      ["Created", created && time(created, now)],
      ["Changed", time(last.updated_at, now)],
      ["Worker", record.worker ?? this.#ordered()[0]?.worker ?? "default"],
      ["Labels", record.labels && Object.entries(record.labels).map((pair) => pair.join("=")).join(" ")],
      ["Attempt", last.attempt && (attemptText(last) || "attempt 1")],
      ["Restarts", record.restart && restartText(record.restart)],
      ["Owner", record.owner && el("span", { class: "mono" }, record.owner)],
      ["Reason", last.reason && words(last.reason)],
      ["Detail", last.detail],
      ["Idle after", record.idle_after_s !== undefined && `${record.idle_after_s} s`],
      ["Idle timeout", record.idle_timeout_s !== undefined && `${record.idle_timeout_s} s`],
      ["Maximum lifetime", record.max_lifetime_s !== undefined && `${record.max_lifetime_s} s`],
      ["Trace", record.traceparent && el("span", { class: "mono" }, record.traceparent)],
    ].filter(([, value]) => value);
    byId("record").replaceChildren(...rows.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
    this.#drawJson("metadata", record.metadata ?? this.#ordered()[0]?.metadata);
    this.#drawJson("llm-config", record.llm_config);
    byId("record-gone").hidden = this.record !== null;
  }

  #drawJson(id, value) {
    const empty = value === undefined || value === null || Object.keys(value).length === 0;
    byId(`${id}-part`).hidden = empty;
    if (!empty) setText(byId(id), pretty(value));
  }

  #segments() {
    const changes = this.#ordered().filter((event) => event.type !== "session_terminated");
    const found = changes.map((event) => ({ status: event.status ?? "initializing", from: MS(event.updated_at ?? event.created_at) }));
    if (changes.length > 0 && changes[0].type !== "session_created" && this.record) {
      found.unshift({ status: changes[0].previous_status, from: MS(this.record.created_at) });
    }
    found.forEach((segment, index) => {
      segment.to = found[index + 1]?.from ?? this.store.now();
    });
    return found.filter((segment) => segment.status !== "terminated");
  }

  #drawTimeline() {
    const segments = this.#segments();
    const shown = segments.slice(-SEGMENTS_MAX);
    const bar = byId("timeline");
    while (bar.children.length > shown.length) bar.lastChild.remove();
    while (bar.children.length < shown.length) bar.append(el("li", {}, el("span", {})));
    shown.forEach((segment, index) => {
      const node = bar.children[index];
      const length = duration(segment.to - segment.from);
      node.className = `segment ${segment.status}`;
      node.style.flexGrow = String(Math.max(1, segment.to - segment.from));
      node.title = `${segment.status} for ${length}, since ${moment(segment.from, this.store.now())}`;
      setText(node.firstChild, `${segment.status} ${length}`);
    });
    this.#drawTotals(segments);
  }

  #drawTotals(segments) {
    const totals = new Map();
    for (const { status, from, to } of segments) totals.set(status, (totals.get(status) ?? 0) + Math.max(0, to - from));
    const list = byId("totals");
    const wanted = [...totals].map(([status, ms]) => [status, duration(ms)]);
    if (list.children.length !== wanted.length) {
      list.replaceChildren(...wanted.map(() => el("li", {}, el("span", {}), el("span", { class: "number" }))));
    }
    wanted.forEach(([status, text], index) => {
      const [name, length] = list.children[index].children;
      name.className = `chip ${status}`;
      setText(name, status);
      setText(length, text);
    });
  }

  #drawEvents() {
    const all = this.#ordered();
    const events = all.slice(-SHOWN_MAX);
    const list = byId("events");
    const atEnd = nearEnd(list);
    setText(byId("events-note"), all.length > events.length ? `The first ${all.length - events.length} events are not shown.` : "");
    const known = new Map([...list.children].map((node) => [node.dataset.key, node]));
    list.replaceChildren(...events.map((event, index) => known.get(eventKey(event)) ?? this.#eventNode(event, all[all.length - events.length + index - 1])));
    if (atEnd) list.scrollTop = list.scrollHeight;
  }

  #eventNode(event, before) {
    const at = MS(event.updated_at ?? event.created_at);
    const passed = before && event.type !== "session_terminated" ? `+${duration(at - MS(before.updated_at ?? before.created_at))}` : "";
    const what = {
      session_created: () => [el("strong", {}, "created")],
      session_status: () => [chip(event.previous_status), el("span", { class: "arrow", "aria-label": "to" }, "→"), chip(event.status, FAILURES.has(event.reason))],
      session_terminated: () => [el("strong", {}, "ended")],
    }[event.type]?.() ?? [el("strong", {}, words(event.type))];
    const why = [event.type === "session_status" && attemptText(event), event.reason && words(event.reason), event.detail, event.forced && "forced"].filter(Boolean).join(" · ");
    return el(
      "li",
      { data: { key: eventKey(event) } },
      el(
        "details",
        {},
        el(
          "summary",
          {},
          el("span", { class: "number muted version" }, `v${event.version}`),
          el("time", { class: "number", datetime: event.updated_at ?? event.created_at }, moment(at, this.store.now())),
          el("span", { class: "number muted passed" }, passed),
          el("span", { class: "what" }, ...what, why && el("span", { class: "why" }, why)),
          event.error && event.type === "session_status" && el("span", { class: "error-line" }, event.error),
        ),
        el("pre", {}, pretty(event)),
      ),
    );
  }

  #onOutput(name, data) {
    if (name === "output_reset") this.#clearOutput();
    else if (name === "output_problem") setText(byId("output-empty"), `The output cannot be read: ${data.message}`);
    else if (name === "output_caught_up") setText(byId("output-empty"), NO_OUTPUT);
    else this.#addOutput(data);
  }

  #addOutput(output) {
    // Output is not fenced: an attempt that was given up may still be heard after the next one has spoken.
    if (output.attempt < this.newest) return;
    if (output.attempt > this.newest) this.newest = output.attempt;
    this.outputs.push(output);
    if (this.outputs.length === 1) requestAnimationFrame(() => this.#drawOutput());
    if (this.outputs.length > 2 * SHOWN_MAX) this.outputs.splice(0, SHOWN_MAX); // no frames are drawn of a hidden page
  }

  #drawOutput() {
    const list = byId("output");
    const atEnd = nearEnd(list);
    for (const output of this.outputs.slice(-SHOWN_MAX)) {
      // Live-only output may arrive before older output, which has to be stored first.
      let next = null;
      while (list.children.length && (next ? next.previousSibling : list.lastChild)?.dataset.at > output.created_at) {
        next = next ? next.previousSibling : list.lastChild;
      }
      list.insertBefore(this.#outputNode(output), next);
    }
    this.outputs = [];
    while (list.children.length > SHOWN_MAX) list.firstChild.remove();
    byId("output-empty").hidden = list.children.length > 0;
    if (atEnd) list.scrollTop = list.scrollHeight;
  }

  #outputNode(output) {
    const spoken = output.type === "conversation_added";
    const value = spoken ? output.content : output.data;
    const text = value === undefined || value === null ? "" : pretty(value);
    return el(
      "li",
      { class: spoken ? `said ${output.role === "user" ? "mine" : ""}` : "emitted", data: { at: output.created_at } },
      el(
        "div",
        { class: "said-head muted" },
        el("span", { class: spoken ? "role" : "mono" }, spoken ? output.role : output.name),
        output.attempt > 1 && el("span", { class: "tag" }, attemptText({ attempt: output.attempt })),
        output.ephemeral && el("span", { class: "tag" }, "live only"),
        el("time", { class: "number", datetime: output.created_at }, moment(MS(output.created_at), this.store.now())),
      ),
      el("div", { class: typeof value === "string" ? "said-text" : "said-text mono" }, text),
    );
  }

  #clearOutput() {
    this.outputs = [];
    this.newest = 0; // the newest attempt that has spoken
    byId("output").replaceChildren();
    byId("output-empty").hidden = false;
    setText(byId("output-empty"), NO_OUTPUT);
  }

  async #act(verb) {
    const id = this.id;
    const buttons = [...byId("session-actions").querySelectorAll("button")];
    setText(byId("action-error"), "");
    for (const button of buttons) button.setAttribute("aria-disabled", "true");
    try {
      await command(id, verb);
    } catch (error) {
      if (this.id === id) setText(byId("action-error"), error.message);
    }
    for (const button of buttons) button.removeAttribute("aria-disabled");
  }

  async #onSend(event) {
    event.preventDefault();
    const id = this.id;
    const field = byId("send-content");
    const content = field.value;
    if (content.trim() === "") return field.focus();
    const button = byId("send-button");
    button.disabled = true;
    setText(byId("send-error"), "");
    // A message that is sent again after an error keeps its id: it is delivered once.
    if (this.messageId === null || this.messageText !== content) Object.assign(this, { messageId: newMessageId(), messageText: content });
    try {
      await command(id, "send", { role: byId("send-role").value.trim(), content, message_id: this.messageId });
      if (this.id !== id) return undefined;
      this.messageId = null;
      field.value = "";
      announce("Sent");
    } catch (error) {
      if (this.id === id) setText(byId("send-error"), error.message);
    } finally {
      button.disabled = false;
    }
    return field.focus();
  }

  async #copyId() {
    try {
      await navigator.clipboard.writeText(this.id);
      announce("Copied");
      byId("copy-id").dataset.done = "yes";
      setTimeout(() => delete byId("copy-id").dataset.done, 1200);
    } catch {
      getSelection()?.selectAllChildren(byId("session-id")); // if the browser does not allow it: select the id
    }
  }
}

function time(text, now) {
  return el("time", { datetime: text, title: text }, moment(MS(text), now));
}

/** crashed, owner lost; at most 5 attempts in a row; after 1 s */
function restartText({ on, attempts_max: most = 5, backoff_s: wait = 1 }) {
  const limit = most === 0 ? "without a limit" : `at most ${most} failures in a row`;
  return `${on.map(words).join(", ")}; ${limit}; after ${wait} s or more`;
}

const eventKey = (event) => `${event.version}.${event.type}`;

const nearEnd = (list) => list.scrollHeight - list.scrollTop - list.clientHeight < NEAR_END_PX;
