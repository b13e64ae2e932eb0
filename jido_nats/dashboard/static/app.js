// The page: the current view, the connection state, keyboard shortcuts, the theme.

import { logOut } from "./api.js";
import { announce, byId, setText } from "./dom.js";
import { askForEnd, openDialog, prepareDialogs } from "./dialogs.js";
import { Feed } from "./feed.js";
import { number, shortId } from "./format.js";
import { Overview } from "./overview.js";
import { SessionView } from "./session.js";
import { Store } from "./store.js";

const THEMES = ["system", "light", "dark"];
const SECOND_MS = 1000;

forgetToken();
const store = new Store();
const feed = new Feed(store, showPhase);
const overview = new Overview(store, feed, (id) => {
  location.hash = `#/session/${encodeURIComponent(id)}`;
});
const session = new SessionView(store, feed, askForEnd);
let shownId; // null: all sessions
let secondAt = 0;

feed.onReset = () => {
  byId("new-session").hidden = store.readOnly;
  byId("read-only").hidden = !store.readOnly;
  byId("log-out").hidden = !store.requiresToken;
  if (shownId !== null) session.load(); // its events since the last one seen were not sent
};
prepareDialogs((id) => {
  location.hash = `#/session/${encodeURIComponent(id)}`;
});
byId("new-session").addEventListener("click", () => openDialog("create"));
byId("keys-button").addEventListener("click", () => openDialog("keys"));
byId("theme").addEventListener("click", nextTheme);
byId("log-out").addEventListener("click", leave);
addEventListener("hashchange", route);
addEventListener("keydown", onKey);
showTheme();
route();
feed.start();
requestAnimationFrame(frame);
globalThis.dashboard = { store, feed }; // for the browser's console and for tests

/** The token of the link is now in a cookie: remove it from the address and the history. */
function forgetToken() {
  const url = new URL(location.href);
  if (!url.searchParams.has("token")) return;
  url.searchParams.delete("token");
  history.replaceState(null, "", url);
}

function frame(now) {
  if (shownId === null) overview.tick(now);
  else if (now >= secondAt) session.tick();
  if (now >= secondAt) {
    secondAt = now + SECOND_MS;
    showTitle();
  }
  requestAnimationFrame(frame);
}

/** The id in an address; null for one that no session can have, such as half a character. */
function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return null;
  }
}

function route() {
  const found = /^#\/session\/([^/]+)$/.exec(location.hash);
  const id = found === null ? null : decoded(found[1]);
  if (id === shownId) return;
  const before = shownId;
  shownId = id;
  byId("overview").hidden = id !== null;
  byId("session").hidden = id === null;
  if (id === null) {
    session.close();
    if (before !== undefined) overview.table.focus();
  } else {
    session.open(id);
    scrollTo(0, 0);
    byId("session-id").focus();
  }
  showTitle();
}

function showTitle() {
  const live = store.rows.size - store.counts.terminated;
  document.title = shownId === null ? `${store.loaded ? `${number(live)} live · ` : ""}jido sessions` : `${shortId(shownId)} · jido sessions`;
}

function showPhase(phase, detail) {
  const { connected, problem } = store.state;
  const away = phase === "live" && !connected;
  const texts = {
    loading: ["Loading", "wait"],
    live: away ? ["NATS is unreachable, reconnecting", "bad"] : ["Live", "good"],
    reconnecting: ["Reconnecting to the dashboard", "bad"],
    paused: ["Paused while hidden", "wait"],
    refused: ["Token required", "bad"],
    problem: ["Waiting", "bad"],
  };
  const [text, kind] = texts[phase];
  const pill = byId("connection");
  if (pill.dataset.kind !== kind || byId("connection-text").textContent !== text) {
    pill.dataset.kind = kind;
    setText(byId("connection-text"), text);
    if (kind !== "wait") announce(text);
  }
  const trouble = {
    refused: "The dashboard requires its token again: reload the page.",
    problem: detail,
    live: problem && connected ? problem : "",
  }[phase];
  showTrouble(trouble);
  document.documentElement.dataset.stale = String(kind === "bad" && store.loaded);
}

function showTrouble(text) {
  byId("trouble").hidden = !text;
  setText(byId("trouble"), text ?? "");
}

function onKey(event) {
  const typing = /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName);
  const inDialog = document.querySelector("dialog[open]") !== null;
  if (event.ctrlKey || event.metaKey || event.altKey || inDialog) return;
  if (event.key === "Escape") {
    if (typing) event.target.blur();
    else if (shownId !== null) location.hash = "#/";
  } else if (!typing) {
    onShortcut(event);
  }
}

function onShortcut(event) {
  const actions = {
    "/": () => {
      location.hash = "#/";
      route();
      overview.focusSearch();
    },
    n: () => store.loaded && !store.readOnly && openDialog("create"),
    t: nextTheme,
    "?": () => openDialog("keys"),
  };
  if (event.key === "ArrowDown" && shownId === null && event.target === document.body) overview.table.focus();
  else if (event.key in actions) actions[event.key]();
  else return;
  event.preventDefault();
}

/** Log out, and ask for the token. */
async function leave() {
  try {
    await logOut();
    location.replace("/");
  } catch (error) {
    showTrouble(error.message);
  }
}

function nextTheme() {
  const theme = THEMES[(THEMES.indexOf(currentTheme()) + 1) % THEMES.length];
  if (theme === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  try {
    localStorage.setItem("jido-theme", theme);
  } catch {
    // It then applies until the page is closed.
  }
  showTheme();
  announce(`Theme: ${theme}`);
}

function currentTheme() {
  return document.documentElement.dataset.theme ?? "system";
}

function showTheme() {
  byId("theme").setAttribute("aria-label", `Theme: ${currentTheme()}. Change theme`);
  byId("theme").title = `Theme: ${currentTheme()}`;
  byId("theme").dataset.theme = currentTheme();
}
