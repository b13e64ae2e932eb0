// Formats of times, durations and values.

import { stringify } from "./json.js";

const clockFormat = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });
const dayFormat = new Intl.DateTimeFormat(undefined, { year: "numeric", month: "short", day: "numeric" });
const numberFormat = new Intl.NumberFormat("en");

const SECOND = 1000;
const MINUTE = 60 * SECOND;
const HOUR = 60 * MINUTE;
const DAY = 24 * HOUR;

/** What a session id looks like. */
export const SESSION_ID = /^[A-Za-z0-9_-]{1,64}$/;

/** 10,000 */
export const number = (value) => numberFormat.format(value);

/** 10:30:00 */
export const clock = (ms) => clockFormat.format(ms);

/** 10:30:00.412, with the date if it is not today. */
export function moment(ms, now) {
  const time = `${clock(ms)}.${String(Math.floor(ms) % 1000).padStart(3, "0")}`;
  return new Date(ms).toDateString() === new Date(now).toDateString() ? time : `${dayFormat.format(ms)} ${time}`;
}

/** 412 ms, 3.2 s, 42 s, 3 m 12 s, 5 h 20 m, 3 d 4 h */
export function duration(ms) {
  const value = Math.max(0, ms);
  if (value < SECOND) return `${Math.round(value)} ms`;
  if (value < 10 * SECOND) return `${(Math.floor(value / 100) / 10).toFixed(1)} s`;
  return age(value);
}

/** The same in whole seconds, for durations that keep growing. */
export function age(ms) {
  const value = Math.max(0, ms);
  if (value < MINUTE) return `${Math.floor(value / SECOND)} s`;
  if (value < HOUR) return `${Math.floor(value / MINUTE)} m ${Math.floor((value % MINUTE) / SECOND)} s`;
  if (value < DAY) return `${Math.floor(value / HOUR)} h ${Math.floor((value % HOUR) / MINUTE)} m`;
  return `${Math.floor(value / DAY)} d ${Math.floor((value % DAY) / HOUR)} h`;
}

/** An id for narrow places: its end, where ids differ. */
export const shortId = (id) => (id.length <= 18 ? id : `…${id.slice(-12)}`);

/** Any JSON value, indented; a string unchanged. */
export const pretty = (value) => (typeof value === "string" ? value : stringify(value, 2));

export const FAILURES = new Set(["crashed", "start_failed", "owner_lost"]);

/** A reason as words. */
export const words = (reason) => reason.replaceAll("_", " ");

/** attempt 3, crashed: for an attempt that is not a session's first, and why it began until it is active. */
export function attemptText({ attempt, cause }) {
  if (!(attempt > 1)) return "";
  return `attempt ${number(attempt)}${cause ? `, ${words(cause)}` : ""}`;
}

/** What a row shows of a session's kind of worker and its metadata: [key, value] pairs. */
export function shownPairs(worker = "default", metadata = {}) {
  return [...(worker === "default" ? [] : [["worker", worker]]), ...Object.entries(metadata)];
}

/** A manager's kinds of worker and its labels, as far as they say more than that it runs one kind. */
export function offerText({ workers = {}, labels = {} }) {
  const kinds = Object.entries(workers ?? {});
  const shown = kinds.filter(([name, kind]) => kinds.length > 1 || name !== "default" || kind.waits);
  const words = ([name, { sessions = 0, full, waits }]) => (waits ? "no worker: sessions only wait" : `${name} ${number(sessions)}${full ? " (full)" : ""}`);
  return [...shown.map(words), ...Object.entries(labels).map((pair) => pair.join("="))].join(" · ");
}
