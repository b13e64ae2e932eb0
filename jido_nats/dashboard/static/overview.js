// All sessions: counts, the chart, the managers, the table with its search.

import { Chart } from "./chart.js";
import { announce, byId, el, setText } from "./dom.js";
import { age, moment, number, offerText, SESSION_ID, shortId } from "./format.js";
import { STATUSES } from "./store.js";
import { Table } from "./table.js";

const CHART_MS = 500;
const TILES_MS = 100;
const LEASE_LOW = 0.34; // a lease is renewed three times within its duration
const ANNOUNCE_MS = 700;

export class Overview {
  constructor(store, feed, open) {
    this.store = store;
    this.feed = feed;
    this.open = open;
    this.chart = new Chart(store);
    this.table = new Table(store, open);
    this.chartAt = 0;
    this.tilesAt = 0;
    this.managerNodes = new Map();
    this.#makeTiles();
    this.search = byId("search");
    this.search.addEventListener("input", () => this.#onSearch());
    this.search.addEventListener("keydown", (event) => this.#onSearchKey(event));
    byId("clear").addEventListener("click", () => this.clear());
    byId("open-by-id").addEventListener("click", () => this.open(this.search.value.trim()));
  }

  /** Update everything; called for every frame while the view is shown. */
  tick(now) {
    this.table.tick(now);
    if (now >= this.tilesAt) {
      this.tilesAt = now + TILES_MS;
      this.#drawTiles();
      this.#drawEmpty();
    }
    if (now >= this.chartAt) {
      this.chartAt = now + CHART_MS;
      this.chart.draw();
      this.#drawManagers();
    }
  }

  focusSearch() {
    this.search.focus();
    this.search.select();
  }

  clear() {
    this.search.value = "";
    this.#choose("live");
    this.#onSearch();
  }

  #makeTiles() {
    const tile = (status, label) =>
      el(
        "button",
        { type: "button", class: `tile ${status}`, "aria-pressed": "false", data: { status }, onclick: () => this.#choose(status) },
        el("span", { class: "tile-number" }, "0"),
        el("span", { class: "tile-label" }, label),
      );
    const labels = { terminated: "ended" };
    byId("tiles").append(tile("live", "live"), ...STATUSES.map((status) => tile(status, labels[status] ?? status)), tile("all", "all"));
    this.tiles = [...byId("tiles").children];
    this.#show("live");
  }

  #choose(status) {
    this.#show(status);
    this.#announceCount();
  }

  #show(status) {
    for (const tile of this.tiles) tile.setAttribute("aria-pressed", String(tile.dataset.status === status));
    this.table.setStatus(status);
  }

  #drawTiles() {
    const counts = this.store.counts;
    const all = this.store.rows.size;
    for (const tile of this.tiles) {
      const status = tile.dataset.status;
      const count = status === "all" ? all : status === "live" ? all - counts.terminated : counts[status];
      setText(tile.firstChild, this.store.loaded ? number(count) : "–");
    }
  }

  #drawEmpty() {
    const none = this.store.loaded && this.table.visible.length === 0;
    const query = this.search.value.trim();
    const filtered = query !== "" || this.table.status !== "live";
    byId("empty").hidden = !none;
    byId("loading").hidden = this.store.loaded;
    if (!none) return;
    const [title, text] = this.#emptyWords(query, filtered);
    setText(byId("empty-title"), title);
    setText(byId("empty-text"), text);
    byId("clear").hidden = !filtered;
    byId("open-by-id").hidden = !SESSION_ID.test(query);
    setText(byId("open-by-id"), `Look up ${shortId(query)} in the stream`);
  }

  #emptyWords(query, filtered) {
    if (query !== "") {
      return ["Nothing matches", "A session that ended long ago is no longer in this table, but the stream may still have its history: look it up by its id."];
    }
    if (filtered) return ["No sessions in this status", "There may be sessions in other statuses."];
    if (this.store.managers.length === 0 && this.store.state.managers_problem === null) {
      return ["No sessions, and no manager to run one", "Start one with: jido-nats serve"];
    }
    return ["No sessions", this.store.readOnly ? "Sessions appear here as soon as they are created." : "Create one with “New session”, or with: jido-nats create"];
  }

  #drawManagers() {
    const { managers, state } = this.store;
    const list = byId("managers");
    const seen = new Set();
    for (const manager of managers) {
      seen.add(manager.manager_id);
      let nodes = this.managerNodes.get(manager.manager_id);
      if (nodes === undefined) {
        nodes = this.#managerNode(manager);
        this.managerNodes.set(manager.manager_id, nodes);
        list.append(nodes.item);
      }
      this.#fillManager(nodes, manager, state.connected);
    }
    for (const [id, nodes] of this.managerNodes) {
      if (seen.has(id)) continue;
      nodes.item.remove();
      this.managerNodes.delete(id);
    }
    setText(byId("managers-count"), managers.length ? number(managers.length) : "");
    this.#suggestWorkers(managers);
    const empty = byId("managers-empty");
    empty.hidden = managers.length > 0;
    setText(empty, state.managers_problem ?? (this.store.loaded ? "No manager has a lease: commands get no reply. Start one with: jido-nats serve" : "…"));
  }

  /** The kinds of worker that there are, as suggestions for a new session. */
  #suggestWorkers(managers) {
    const names = [...new Set(managers.flatMap(({ workers }) => Object.keys(workers ?? {})))].sort();
    if (names.join() === this.workers) return;
    this.workers = names.join();
    byId("create-workers").replaceChildren(...names.map((value) => el("option", { value })));
  }

  #managerNode(manager) {
    const nodes = {
      sessions: el("span", { class: "number" }),
      lease: el("span", { class: "meter", "aria-hidden": "true" }, el("span", {})),
      left: el("span", { class: "number muted" }),
      state: el("span", { class: "tag" }),
      offer: el("div", { class: "manager-offer muted", hidden: true }),
    };
    const started = Date.parse(manager.started_at);
    nodes.item = el(
      "li",
      {},
      el(
        "div",
        { class: "manager-name" },
        el("span", { class: "mono", title: manager.manager_id }, shortId(manager.manager_id)),
        nodes.state,
        nodes.sessions,
      ),
      el(
        "div",
        { class: "manager-facts muted" },
        el("span", { title: `since ${moment(started, this.store.now())}` }, `${manager.host} · pid ${manager.pid} · v${manager.version}`),
        el("span", { class: "lease" }, nodes.lease, nodes.left),
      ),
      nodes.offer,
    );
    return nodes;
  }

  #fillManager(nodes, manager, connected) {
    const left = Date.parse(manager.renewed_at) + 1000 * manager.lease_s - this.store.now();
    const sessions = manager.sessions ?? 0;
    setText(nodes.state, manager.draining ? "draining" : "full");
    nodes.state.hidden = !manager.draining && !manager.full;
    const offer = offerText(manager);
    setText(nodes.offer, offer);
    nodes.offer.hidden = offer === "";
    setText(nodes.sessions, sessions === 1 ? "1 session" : `${number(sessions)} sessions`);
    const share = connected ? Math.max(0, Math.min(1, left / (1000 * manager.lease_s))) : 0;
    nodes.lease.firstChild.style.width = `${Math.round(100 * share)}%`;
    nodes.lease.classList.toggle("low", share < LEASE_LOW);
    setText(nodes.left, connected ? `lease ${left > 0 ? age(left + 999) : "late"}` : "lease unknown");
  }

  #onSearch() {
    this.table.setQuery(this.search.value);
    this.#announceCount();
  }

  #onSearchKey(event) {
    if (event.key === "Escape") {
      if (this.search.value === "") this.search.blur();
      this.search.value = "";
      this.#onSearch();
      event.stopPropagation();
    } else if (event.key === "ArrowDown") {
      event.preventDefault();
      this.table.focus();
    } else if (event.key === "Enter") {
      const [only] = this.table.visible;
      const query = this.search.value.trim();
      if (this.table.visible.length === 1) this.open(only.id);
      else if (this.table.visible.length === 0 && SESSION_ID.test(query)) this.open(query);
      else this.table.focus();
    }
  }

  #announceCount() {
    clearTimeout(this.announcing);
    this.announcing = setTimeout(() => announce(byId("count").textContent), ANNOUNCE_MS);
  }
}
