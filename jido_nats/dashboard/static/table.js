// The table of sessions: only visible rows are in the DOM, so ten thousand are as fast as ten.

import { byId, chip, el, setText } from "./dom.js";
import { age, attemptText, moment, number, shortId, words } from "./format.js";
import { STATUSES } from "./store.js";

const OVERSCAN = 6;
const ID_TAIL = 12;
const PAIRS_MAX = 8;
const HEIGHT_MAX_PX = 30_000_000; // browsers cannot lay out taller elements
const REFRESH_MS = 250; // at most this often: sort and filter
const REFRESH_SHARE = 8; // … and in at most this fraction (1/n) of the time

const AGES_MS = 500; // how often ages are redrawn

const ORDER = Object.fromEntries(STATUSES.map((status, index) => [status, index]));
const SORTS = {
  status: (a, b) => (ORDER[a.status] ?? STATUSES.length) - (ORDER[b.status] ?? STATUSES.length),
  id: (a, b) => (a.id < b.id ? -1 : Number(a.id > b.id)),
  metadata: (a, b) => (a.label < b.label ? -1 : Number(a.label > b.label)),
  updated: (a, b) => a.updated - b.updated,
  created: (a, b) => a.created - b.created,
  owner: (a, b) => (a.owner < b.owner ? -1 : Number(a.owner > b.owner)),
};

export class Table {
  /** `onOpen(id)`: a row was chosen. */
  constructor(store, onOpen) {
    this.store = store;
    this.onOpen = onOpen;
    this.grid = byId("grid");
    this.viewport = byId("rows");
    this.sizer = byId("sizer");
    this.sort = { key: "created", descending: true };
    this.status = "live";
    this.terms = [];
    this.visible = [];
    this.slots = [];
    this.activeId = null;
    this.revision = -1;
    this.refreshAt = 0;
    this.drawnRevision = -1;
    this.drawAt = 0;
    this.viewport.addEventListener("scroll", () => (this.drawAt = 0), { passive: true }); // in the next frame
    this.viewport.addEventListener("pointerover", (event) => this.#explain(event.target.closest(".row")));
    new ResizeObserver(() => this.#measure()).observe(this.viewport);
    this.grid.addEventListener("keydown", (event) => this.#onKey(event));
    this.grid.addEventListener("focus", () => this.#activate(this.activeId ?? this.visible[0]?.id ?? null));
    this.viewport.addEventListener("click", (event) => this.#onClick(event));
    for (const button of this.grid.querySelectorAll("[data-sort]")) {
      button.addEventListener("click", () => this.#sortBy(button.dataset.sort));
    }
    this.#markSort();
  }

  /** Show one status, `live`, or `all`. */
  setStatus(status) {
    this.status = status;
    this.#restart();
  }

  /** Show rows that contain all the words: in id, owner, metadata (also as key=value), reason or error. */
  setQuery(query) {
    this.terms = query.toLowerCase().split(/\s+/).filter(Boolean);
    this.#restart();
  }

  /** Apply what has changed; called for every frame. */
  tick(now) {
    if (this.revision !== this.store.revision && now >= this.refreshAt) this.refresh();
    if (this.drawnRevision === this.store.revision && now < this.drawAt) return;
    this.drawnRevision = this.store.revision;
    this.drawAt = now + AGES_MS;
    this.draw();
  }

  /** Filter and sort, and keep the visible rows in place. */
  refresh() {
    const started = performance.now();
    const anchor = this.viewport.scrollTop > 0 ? this.visible[this.#first()] : undefined;
    const offset = this.viewport.scrollTop - this.#first() * this.rowHeight;
    const sign = this.sort.descending ? -1 : 1;
    const compare = SORTS[this.sort.key];
    this.revision = this.store.revision;
    this.visible = [...this.store.rows.values()].filter((row) => this.#matches(row));
    this.visible.sort((a, b) => sign * compare(a, b) || (a.id < b.id ? -sign : sign));
    this.sizer.style.height = `${Math.min(this.visible.length * this.rowHeight, HEIGHT_MAX_PX)}px`;
    this.grid.setAttribute("aria-rowcount", String(this.visible.length + 1));
    if (anchor !== undefined) {
      const index = this.visible.indexOf(anchor);
      if (index >= 0) this.viewport.scrollTop = index * this.rowHeight + offset;
    }
    const finished = performance.now();
    this.refreshAt = finished + Math.max(REFRESH_MS, REFRESH_SHARE * (finished - started));
    this.#showCount();
  }

  /** Update the visible rows. */
  draw() {
    const first = Math.max(0, this.#first() - OVERSCAN);
    const now = this.store.now();
    for (const slot of this.slots) slot.wanted = false;
    for (let index = first; index < Math.min(first + this.slots.length, this.visible.length); index += 1) {
      this.#fill(this.slots[index % this.slots.length], this.visible[index], index, now);
    }
    for (const slot of this.slots) {
      if (!slot.wanted && !slot.node.hidden) {
        slot.node.hidden = true;
        slot.node.removeAttribute("id");
        slot.row = null;
      }
    }
    this.#markActive();
  }

  focus() {
    this.grid.focus();
  }

  #matches(row) {
    if (this.status === "live" ? row.status === "terminated" : this.status !== "all" && row.status !== this.status) return false;
    return this.terms.every((term) => row.text.includes(term));
  }

  #restart() {
    this.viewport.scrollTop = 0;
    this.activeId = null;
    this.refresh();
    this.draw();
  }

  #fill(slot, row, index, now) {
    slot.wanted = true;
    if (slot.index !== index) {
      slot.index = index;
      slot.node.style.transform = `translateY(${index * this.rowHeight}px)`;
      slot.node.setAttribute("aria-rowindex", String(index + 2));
    }
    if (slot.node.hidden) slot.node.hidden = false;
    if (slot.row !== row || slot.version !== row.version || slot.owner !== row.owner) {
      slot.row = row;
      slot.version = row.version;
      slot.owner = row.owner;
      slot.node.id = `row-${row.id}`;
      slot.chip.className = `chip ${row.status}${row.failed ? " failed" : ""}`;
      slot.chip.textContent = row.status;
      slot.reason.textContent = row.reason && row.status === "terminated" ? words(row.reason) : attemptText(row);
      slot.link.href = `#/session/${row.id}`;
      // Ids differ at their end: it stays visible when there is no room for the middle.
      slot.idHead.data = row.id.slice(0, -ID_TAIL);
      slot.idTail.data = row.id.slice(-ID_TAIL);
      slot.ownerCell.textContent = row.owner ? shortId(row.owner) : "";
      if (slot.label !== row.label) this.#fillMetadata(slot, row);
    }
    const ages = [age(now - row.updated), age(now - row.created)];
    if (slot.ages[0].data !== ages[0]) slot.ages[0].data = ages[0];
    if (slot.ages[1].data !== ages[1]) slot.ages[1].data = ages[1];
  }

  #fillMetadata(slot, row) {
    slot.label = row.label;
    const pairs = row.pairs.slice(0, PAIRS_MAX);
    while (slot.pairs.length < pairs.length) {
      const [key, value] = [document.createTextNode(""), document.createTextNode("")];
      const node = el("span", { class: "pair" }, el("span", {}, key), value);
      slot.pairs.push({ node, key, value });
      slot.metadata.append(node);
    }
    slot.pairs.forEach(({ node, key, value }, index) => {
      node.hidden = index >= pairs.length;
      if (!node.hidden) [key.data, value.data] = pairs[index];
    });
  }

  /** Tooltips of the row under the pointer, for what it has no room for. */
  #explain(node) {
    const slot = this.slots.find((each) => each.node === node);
    if (!slot?.row) return;
    const now = this.store.now();
    slot.metadata.title = slot.row.label;
    slot.ownerCell.title = slot.row.owner;
    slot.updated.title = moment(slot.row.updated, now);
    slot.created.title = moment(slot.row.created, now);
  }

  #measure() {
    const sample = this.slots[0] ?? this.#add();
    sample.node.hidden = false;
    this.rowHeight = sample.node.offsetHeight || 36;
    const wanted = Math.ceil(this.viewport.clientHeight / this.rowHeight) + 2 * OVERSCAN + 1;
    while (this.slots.length < wanted) this.#add();
    for (const slot of this.slots) Object.assign(slot, { index: -1, row: null });
    this.refresh();
    this.draw();
  }

  #add() {
    const cell = (name, ...children) => el("div", { role: "gridcell", class: `cell ${name}` }, ...children);
    const slot = { index: -1, row: null, pairs: [] };
    slot.chip = chip("active");
    slot.reason = el("span", { class: "reason" });
    slot.idHead = document.createTextNode("");
    slot.idTail = document.createTextNode("");
    slot.link = el("a", { tabindex: "-1", href: "#/" }, el("span", { class: "id-head" }, slot.idHead), el("span", {}, slot.idTail));
    slot.metadata = cell("metadata");
    slot.ages = [document.createTextNode(""), document.createTextNode("")];
    slot.updated = cell("updated number", slot.ages[0]);
    slot.created = cell("created number", slot.ages[1]);
    slot.ownerCell = cell("owner");
    slot.node = el(
      "div",
      { role: "row", class: "row", hidden: true },
      cell("status", slot.chip, slot.reason),
      cell("id", slot.link),
      slot.metadata,
      slot.updated,
      slot.created,
      slot.ownerCell,
    );
    this.sizer.append(slot.node);
    this.slots.push(slot);
    return slot;
  }

  #first() {
    return Math.floor(this.viewport.scrollTop / (this.rowHeight || 36));
  }

  #onClick(event) {
    const node = event.target.closest(".row");
    const slot = this.slots.find((each) => each.node === node);
    if (!slot?.row || event.target.closest("a") || getSelection()?.toString()) return;
    this.onOpen(slot.row.id);
  }

  #onKey(event) {
    const at = this.visible.findIndex((row) => row.id === this.activeId);
    const page = Math.max(1, Math.floor(this.viewport.clientHeight / this.rowHeight) - 1);
    const last = this.visible.length - 1;
    const targets = { ArrowDown: at + 1, ArrowUp: at - 1, PageDown: at + page, PageUp: at - page, Home: 0, End: last };
    if (event.target === this.grid && event.key in targets && last >= 0) {
      event.preventDefault();
      this.#activate(this.visible[Math.min(Math.max(targets[event.key], 0), last)].id);
    } else if (event.key === "Enter" && event.target === this.grid && at >= 0) {
      event.preventDefault();
      this.onOpen(this.activeId);
    }
  }

  #activate(id) {
    this.activeId = id;
    const index = this.visible.findIndex((row) => row.id === id);
    if (index >= 0) {
      const top = index * this.rowHeight;
      const lowest = top + this.rowHeight - this.viewport.clientHeight;
      this.viewport.scrollTop = Math.max(lowest, Math.min(top, this.viewport.scrollTop));
    }
    this.draw();
  }

  #markActive() {
    let shown = false;
    for (const slot of this.slots) {
      const active = slot.row !== null && slot.row.id === this.activeId;
      shown ||= active;
      if (slot.active === active) continue;
      slot.active = active;
      slot.node.classList.toggle("active-row", active);
      slot.node.setAttribute("aria-selected", String(active));
    }
    if (shown) this.grid.setAttribute("aria-activedescendant", `row-${this.activeId}`);
    else this.grid.removeAttribute("aria-activedescendant");
  }

  #sortBy(key) {
    const descending = this.sort.key === key ? !this.sort.descending : key === "created" || key === "updated";
    this.sort = { key, descending };
    this.#markSort();
    this.#restart();
  }

  #markSort() {
    for (const button of this.grid.querySelectorAll("[data-sort]")) {
      const chosen = button.dataset.sort === this.sort.key;
      // The time columns show ages: newest first means smallest age first.
      const ages = ["created", "updated"].includes(button.dataset.sort);
      const direction = this.sort.descending !== ages ? "descending" : "ascending";
      button.parentElement.setAttribute("aria-sort", chosen ? direction : "none");
    }
  }

  #showCount() {
    const all = this.store.rows.size;
    const shown = this.visible.length;
    const text = shown === all ? `${number(all)} sessions` : `${number(shown)} of ${number(all)} sessions`;
    setText(byId("count"), text);
  }
}
