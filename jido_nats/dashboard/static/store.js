// The page's state: sessions, event rates of the last minutes, managers. No DOM here.

import { FAILURES, shownPairs } from "./format.js";

export const STATUSES = ["initializing", "active", "idle", "terminating", "terminated"];
export const RATES_S = 300;
const ENDED_MAX = 5000;

export class Store {
  constructor() {
    this.rows = new Map();
    this.counts = Object.fromEntries(STATUSES.map((status) => [status, 0]));
    this.ended = [];
    this.rates = new Map();
    this.managers = [];
    this.state = { connected: true, loaded: false, problem: null, managers_problem: null };
    this.readOnly = true;
    this.requiresToken = false;
    this.loaded = false;
    this.clockOffset = 0;
    this.revision = 0; // grows with every change of the rows
    this.applied = 0; // events applied since the page was opened
    this.listeners = new Set(); // called with every event
  }

  /** The time, by the dashboard's clock. */
  now() {
    return Date.now() + this.clockOffset;
  }

  /** Start over from a snapshot. */
  restart(snapshot) {
    this.clockOffset = Date.parse(snapshot.now) - Date.now();
    this.readOnly = snapshot.read_only;
    this.requiresToken = snapshot.requires_token;
    this.managers = snapshot.managers;
    this.rates = new Map(snapshot.rates.map(([second, events, failures]) => [second, { events, failures }]));
    this.rows.clear();
    this.ended = [];
    this.counts = Object.fromEntries(STATUSES.map((status) => [status, 0]));
    for (const [id, status, version, owner, created, updated, metadata, reason, error, worker, attempt, cause] of snapshot.sessions) {
      const times = { created: Date.parse(created), updated: Date.parse(updated) };
      const row = { id, version, owner, ...times, pairs: shownPairs(worker, metadata), reason, error, attempt, cause };
      this.#put(row, status);
    }
    this.ended.sort((a, b) => this.rows.get(a).updated - this.rows.get(b).updated);
    this.loaded = true;
    this.revision += 1;
  }

  /** Apply one event of the stream. */
  apply({ event, owner }) {
    this.applied += 1;
    this.#count(event);
    const known = this.rows.get(event.session_id);
    if (event.type === "session_terminated") this.#forget();
    else if (known === undefined || event.version > known.version) this.#change(known, event, owner);
    this.revision += 1;
    for (const listener of this.listeners) listener(event, owner);
  }

  /** Events and failures in one second. */
  rate(second) {
    return this.rates.get(second) ?? { events: 0, failures: 0 };
  }

  #change(known, event, owner) {
    const at = Date.parse(event.created_at ?? event.updated_at ?? new Date(this.now()).toISOString());
    const row = known ?? { id: event.session_id, version: 0, owner, created: at, pairs: shownPairs(event.worker, event.metadata) };
    row.version = event.version;
    row.updated = at;
    row.owner = owner || row.owner;
    row.reason = event.reason;
    row.error = event.error;
    row.attempt = event.attempt ?? row.attempt;
    row.cause = event.cause;
    // An event of a type that this page does not know changes the version, and nothing that is shown.
    this.#put(row, event.status ?? row.status ?? "initializing");
  }

  #put(row, status) {
    if (row.status !== undefined) this.counts[row.status] -= 1;
    this.counts[status] = (this.counts[status] ?? 0) + 1;
    if (status === "terminated" && row.status !== status) this.ended.push(row.id);
    row.status = status;
    row.failed = status === "terminated" && FAILURES.has(row.reason);
    const pairs = row.pairs.map(([key, value]) => `${key}=${value}`);
    row.label ??= pairs.join("\n");
    row.text = [row.id, row.owner, ...pairs, row.reason, row.error].join("\n").toLowerCase();
    this.rows.set(row.id, row);
  }

  #count(event) {
    const at = Date.parse(event.created_at ?? event.updated_at ?? new Date(this.now()).toISOString());
    const second = Math.floor(at / 1000);
    let counts = this.rates.get(second);
    if (counts === undefined) {
      counts = { events: 0, failures: 0 };
      this.rates.set(second, counts);
      const oldest = Math.floor(this.now() / 1000) - RATES_S - 5;
      for (const known of this.rates.keys()) if (known < oldest) this.rates.delete(known);
    }
    counts.events += 1;
    if (event.type === "session_terminated" && FAILURES.has(event.reason)) counts.failures += 1;
  }

  #forget() {
    while (this.ended.length > ENDED_MAX) {
      const row = this.rows.get(this.ended.shift());
      if (row === undefined) continue;
      this.counts[row.status] -= 1;
      this.rows.delete(row.id);
    }
  }
}
