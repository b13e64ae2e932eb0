// Dialogs: new session, terminate a session, keyboard shortcuts.

import { command, createSession } from "./api.js";
import { announce, byId, setText } from "./dom.js";
import { shortId } from "./format.js";
import { parse } from "./json.js";

const LIMITS = { "create-idle-after": "idle_after_s", "create-idle-timeout": "idle_timeout_s", "create-lifetime": "max_lifetime_s" };

/** The input is invalid. */
class FormError extends Error {}

/** Show the dialog with that name, with empty fields. */
export function openDialog(name) {
  const dialog = byId(`${name}-dialog`);
  if (dialog.open) return;
  const form = dialog.querySelector("form");
  form.reset();
  for (const error of dialog.querySelectorAll(".error-text")) setText(error, "");
  dialog.showModal();
}

export function prepareDialogs(onCreated) {
  for (const dialog of document.querySelectorAll("dialog")) {
    for (const button of dialog.querySelectorAll("[data-close]")) button.addEventListener("click", () => dialog.close());
    dialog.addEventListener("click", (event) => {
      if (event.target === dialog) dialog.close(); // a click outside it
    });
  }
  onSubmit("create", async () => {
    const created = await createSession(createRequest());
    announce("Session created");
    onCreated(created.session_id);
  });
  onSubmit("terminate", async () => {
    const detail = byId("terminate-detail").value.trim();
    await command(byId("terminate-dialog").dataset.id, "terminate", detail ? { detail } : {});
  });
}

export function askForEnd(id) {
  openDialog("terminate");
  byId("terminate-dialog").dataset.id = id;
  setText(byId("terminate-id"), shortId(id));
}

function onSubmit(name, work) {
  const dialog = byId(`${name}-dialog`);
  const button = byId(`${name}-submit`);
  dialog.querySelector("form").addEventListener("submit", async (event) => {
    event.preventDefault();
    if (button.disabled) return;
    button.disabled = true;
    setText(byId(`${name}-error`), "");
    try {
      await work();
      dialog.close();
    } catch (error) {
      setText(byId(`${name}-error`), error.message);
    } finally {
      button.disabled = false;
    }
  });
}

function createRequest() {
  const request = { metadata: pairs(byId("create-metadata").value, "The metadata"), labels: pairs(byId("create-labels").value, "The labels") };
  const worker = byId("create-worker").value.trim();
  const id = byId("create-id").value.trim();
  const config = byId("create-config").value.trim();
  if (worker) request.worker = worker;
  if (id) request.session_id = id;
  if (config) request.llm_config = object(config, "The LLM configuration");
  for (const [field, name] of Object.entries(LIMITS)) {
    const text = byId(field).value.trim();
    if (text) request[name] = Number(text);
  }
  return request;
}

/** `key=value` lines, or a JSON object. */
function pairs(text, name) {
  if (text.trim().startsWith("{")) return object(text, name);
  const found = {};
  for (const line of text.split("\n").filter((each) => each.trim())) {
    const at = line.indexOf("=");
    if (at < 1) throw new FormError(`${name} must be one key=value per line, or a JSON object: “${line.trim()}” is neither.`);
    found[line.slice(0, at).trim()] = line.slice(at + 1).trim();
  }
  return found;
}

function object(text, name) {
  let value;
  try {
    value = parse(text);
  } catch (error) {
    throw new FormError(`${name} cannot be read as JSON: ${error.message}.`);
  }
  if (value === null || typeof value !== "object" || Array.isArray(value)) throw new FormError(`${name} must be a JSON object.`);
  return value;
}
