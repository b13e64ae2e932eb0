// npx esbuild browser.js --bundle --format=esm --outfile=bundle.js, and open browser.html?server=ws://127.0.0.1:8080
// With the roles of nats.conf the page's address also has user, password, inbox_prefix and js_api_prefix.
// A browser speaks NATS over a WebSocket: nats-server has to have a `websocket` listener.

import { wsconnect } from "@nats-io/nats-core";
import { run } from "./subscriber.js";

const { server, user, password, inbox_prefix, js_api_prefix } = Object.fromEntries(new URLSearchParams(location.search));
const page = document.querySelector("#heard");

/** All that was heard, one JSON line each: for the page's reader, and for the test that waits for it. */
window.heard = run(
  () => wsconnect({ servers: server, user, pass: password, inboxPrefix: inbox_prefix }),
  (line) => page.append(`${JSON.stringify(line)}\n`),
  js_api_prefix,
).then(() => page.textContent);
