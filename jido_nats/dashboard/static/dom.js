// Elements from data. Text is inserted only as text nodes: nothing here accepts markup.

/** An element: `el("a", { class: "link", href: "#/" }, "text", child)`; names with a dash or `role` are attributes. */
export function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "class") node.className = value;
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "data") Object.assign(node.dataset, value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/** The element with that id, which must exist. */
export function byId(id) {
  const node = document.getElementById(id);
  if (node === null) throw new Error(`the page has no #${id}`);
  return node;
}

/** Set an element's text; leaves the DOM alone if it is unchanged. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Announce a text to screen readers. */
export function announce(text) {
  const region = byId("live");
  region.textContent = region.textContent === text ? `${text}\u00a0` : text;
}

/** A status as a chip: a dot and the name. */
export function chip(status, failed = false) {
  return el("span", { class: `chip ${status}${failed ? " failed" : ""}` }, status);
}
