// Which tabs may keep a stream open. A browser opens at most six HTTP/1.1 connections to a host, for all of its tabs,
// and commands and pages need some of them. A web lock is given back by the browser when its tab is closed.

const SLOTS = 4;

export class Slot {
  held = false;
  #wanted = false;
  #giveBack = () => {};

  /** Take one, if there is one; `held` says so. */
  async take() {
    if (this.#wanted && this.held) return;
    this.#wanted = true;
    if (!isLimited()) {
      this.held = true;
      return;
    }
    for (let number = 0; number < SLOTS && this.#wanted && !this.held; number += 1) await this.#try(`stream ${number}`);
  }

  /** Leave it to another tab. */
  release() {
    this.#wanted = this.held = false;
    this.#giveBack();
  }

  /** Returns when it is known whether that lock was free; it is held until `release`. */
  #try(name) {
    return new Promise((known) => {
      const hold = (lock) => {
        known();
        if (lock === null || !this.#wanted || this.held) return undefined;
        this.held = true;
        return new Promise((resolve) => {
          this.#giveBack = resolve;
        });
      };
      navigator.locks.request(name, { ifAvailable: true }, hold).catch(known);
    });
  }
}

/** Whether connections are few, and can be shared out: over plain HTTP from another machine there are no locks. */
function isLimited() {
  const [page] = performance.getEntriesByType("navigation");
  return navigator.locks !== undefined && !/^h[23]/.test(page?.nextHopProtocol ?? "");
}
