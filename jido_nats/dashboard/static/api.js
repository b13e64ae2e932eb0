// Commands and other single requests.

import { parse, stringify } from "./json.js";

/** An error response of the dashboard: `code` is stable, the message is for people. */
export class ApiError extends Error {
  constructor(code, message) {
    super(message);
    this.code = code;
  }
}

export const getSession = (id) => call("GET", `/api/sessions/${encodeURIComponent(id)}`);
export const createSession = (request) => call("POST", "/api/sessions", request);
export const command = (id, verb, request = {}) => call("POST", `/api/sessions/${encodeURIComponent(id)}/${verb}`, request);

export const logOut = () => call("POST", "/api/logout", {});

/** An id that makes it safe to send a message again. */
export function newMessageId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

async function call(method, path, body) {
  const options = { method };
  if (body !== undefined) {
    options.headers = { "Content-Type": "application/json" };
    options.body = stringify(body);
  }
  let answer;
  let reply = {};
  try {
    answer = await fetch(path, options);
    const text = await answer.text();
    if (text !== "" && (answer.ok || isJson(answer))) reply = parse(text);
  } catch {
    throw new ApiError("unreachable", "The dashboard does not answer. The command may or may not have been carried out: try again.");
  }
  if (!answer.ok) throw new ApiError(reply.error?.code ?? "internal", sentence(reply.error?.message ?? `Error ${answer.status}`));
  return reply;
}

const isJson = (answer) => answer.headers.get("Content-Type")?.startsWith("application/json");

/** A message as a sentence; a name at its start is not capitalized. */
function sentence(text) {
  const capital = /^[a-z]+[ ,;:']/.test(text) ? text.charAt(0).toUpperCase() + text.slice(1) : text;
  return /[.!?]$/.test(capital) ? capital : `${capital}.`;
}
