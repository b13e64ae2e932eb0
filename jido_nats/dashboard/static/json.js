// JSON whose integers keep every digit: one that a Number cannot hold is a BigInt.

// A string, or a number: what looks like a number inside a string is part of the first.
const TOKENS = /"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?/g;
const INTEGER = /^-?\d{16,}$/;
const MARK = `int${crypto.getRandomValues(new Uint32Array(3)).join("")}:`; // in no text that the page is given
const MARKED = new RegExp(`"${MARK}(-?\\d{16,})"`, "g");

/** The value; throws a SyntaxError as `JSON.parse` does. */
export function parse(text) {
  let found = false;
  const marked = text.replace(TOKENS, (token) => {
    if (!INTEGER.test(token) || Number.isSafeInteger(Number(token))) return token;
    found = true;
    return `"${MARK}${token}"`;
  });
  return found ? JSON.parse(marked, (_, value) => (isMarked(value) ? BigInt(value.slice(MARK.length)) : value)) : JSON.parse(text);
}

/** The text; `indent` as that of `JSON.stringify`. */
export function stringify(value, indent) {
  const text = JSON.stringify(value, (_, one) => (typeof one === "bigint" ? MARK + one : one), indent);
  return text?.replace(MARKED, "$1");
}

const isMarked = (value) => typeof value === "string" && value.startsWith(MARK);
