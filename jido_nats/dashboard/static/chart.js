// Events per second over the last minutes, drawn directly as SVG.

import { byId, setText } from "./dom.js";
import { clock, number } from "./format.js";
import { RATES_S } from "./store.js";

const HEIGHT = 146;
const BASE = 18; // below the bars, for the times
const TOP = 6;
const BAR_MIN_PX = 3;
const SVG = "http://www.w3.org/2000/svg";
const SPOKEN_EVERY_MS = 15_000;

export class Chart {
  constructor(store) {
    this.store = store;
    this.svg = byId("chart");
    this.width = 0;
    this.spokenAt = 0;
    this.pointer = null;
    this.grid = this.#add("path", "grid");
    this.bars = this.#add("path", "bars");
    this.failures = this.#add("path", "failures");
    this.cursor = this.#add("path", "cursor");
    this.labels = [0, 1, 2].map(() => this.#add("text", "scale"));
    this.times = ["start", "middle", "middle", "middle", "middle", "end"].map((anchor) => {
      const text = this.#add("text", "time");
      text.setAttribute("text-anchor", anchor);
      return text;
    });
    new ResizeObserver(([entry]) => {
      this.width = Math.floor(entry.contentRect.width);
      this.draw();
    }).observe(this.svg);
    this.svg.addEventListener("pointermove", (event) => this.#point(event.offsetX));
    this.svg.addEventListener("pointerleave", () => this.#point(null));
  }

  draw() {
    if (this.width === 0) return;
    const seconds = Math.max(1, Math.ceil((RATES_S * BAR_MIN_PX) / this.width)); // per bar
    const until = Math.floor(this.store.now() / 1000); // the current second is not drawn
    const from = until - RATES_S;
    const bars = [];
    for (let start = from - (from % seconds) + seconds; start + seconds <= until; start += seconds) {
      const bar = { start, seconds, events: 0, failures: 0 };
      for (let second = start; second < start + seconds; second += 1) {
        const { events, failures } = this.store.rate(second);
        bar.events += events / seconds;
        bar.failures += failures / seconds;
      }
      bars.push(bar);
    }
    const peak = Math.max(0, ...bars.map((bar) => bar.events));
    const top = niceAbove(peak);
    const x = (second) => ((second - from) / RATES_S) * this.width;
    const y = (value) => TOP + (1 - value / top) * (HEIGHT - TOP - BASE);
    const gap = this.width / RATES_S >= BAR_MIN_PX ? 0.75 : 0.5;
    const path = (value) =>
      bars
        .filter((bar) => value(bar) > 0)
        .map((bar) => `M${x(bar.start).toFixed(1)} ${y(0)}V${Math.min(y(value(bar)), y(0) - 1).toFixed(1)}H${(x(bar.start + seconds) - gap).toFixed(1)}V${y(0)}Z`)
        .join("");
    this.svg.setAttribute("viewBox", `0 0 ${this.width} ${HEIGHT}`);
    this.bars.setAttribute("d", path((bar) => bar.events));
    this.failures.setAttribute("d", path((bar) => bar.failures));
    this.#drawScale(top, y);
    this.#drawTimes();
    this.#showRates(bars, peak);
    this.drawn = { bars, x, y };
    this.#drawPointer();
  }

  #drawScale(top, y) {
    const values = [0, top / 2, top];
    this.grid.setAttribute("d", values.map((value) => `M0 ${Math.round(y(value)) + 0.5}H${this.width}`).join(""));
    values.forEach((value, index) => {
      this.labels[index].setAttribute("x", "2");
      this.labels[index].setAttribute("y", String(y(value) + (index === 2 ? 11 : -4)));
      setText(this.labels[index], index === 0 ? "" : `${number(value)}/s`);
    });
  }

  #drawTimes() {
    this.times.forEach((text, index) => {
      const minutes = this.times.length - 1 - index;
      text.setAttribute("x", String((index / (this.times.length - 1)) * this.width));
      text.setAttribute("y", String(HEIGHT - 4));
      setText(text, minutes === 0 ? "now" : `−${minutes} m`);
    });
  }

  #showRates(bars, peak) {
    const seconds = bars.at(-1)?.seconds ?? 1;
    const last = bars.slice(-Math.max(1, Math.round(3 / seconds)));
    const rate = last.reduce((sum, bar) => sum + bar.events, 0) / Math.max(1, last.length);
    const failures = bars.reduce((sum, bar) => sum + bar.failures * seconds, 0);
    setText(byId("rate-now"), rounded(rate));
    setText(byId("rate-peak"), rounded(peak));
    setText(byId("rate-failures"), number(Math.round(failures)));
    byId("rate-failures").parentElement.classList.toggle("bad", failures > 0);
    const now = performance.now();
    if (this.spokenAt === 0 || now - this.spokenAt > SPOKEN_EVERY_MS) {
      this.spokenAt = now;
      const text = `Events per second over the last five minutes: now ${rounded(rate)}, at most ${rounded(peak)}`;
      this.svg.setAttribute("aria-label", text);
    }
  }

  #point(offset) {
    this.pointer = offset;
    this.#drawPointer();
  }

  #drawPointer() {
    const readout = byId("chart-readout");
    const bar = this.pointer !== null && this.drawn?.bars.find((each) => this.drawn.x(each.start + each.seconds) > this.pointer);
    readout.hidden = !bar;
    this.cursor.setAttribute("d", bar ? `M${this.drawn.x(bar.start + bar.seconds / 2)} ${TOP}V${HEIGHT - BASE}` : "");
    if (!bar) return;
    const failed = bar.failures > 0 ? `, ${number(Math.round(bar.failures * bar.seconds))} failed` : "";
    setText(readout, `${clock(bar.start * 1000)} · ${rounded(bar.events)} events/s${failed}`);
  }

  #add(tag, name) {
    const node = document.createElementNS(SVG, tag);
    node.setAttribute("class", name);
    this.svg.append(node);
    return node;
  }
}

/** The smallest of 2, 4, 10, 20, 40, 100, … that is at least the value. */
function niceAbove(value) {
  for (let scale = 1; ; scale *= 10) for (const step of [2, 4, 10]) if (step * scale >= value) return step * scale;
}

function rounded(value) {
  return value >= 10 || Number.isInteger(value) ? number(Math.round(value)) : value.toFixed(1);
}
