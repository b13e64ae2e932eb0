// npx esbuild browser.js --bundle --format=esm --outfile=bundle.js, and open browser.html?server=ws://127.0.0.1:8080
// A browser speaks NATS over a WebSocket: nats-server has to have a `websocket` listener.

import { wsconnect } from "@nats-io/nats-core";
import { run } from "./subscriber.js";

const servers = new URLSearchParams(location.search).get("server");
const page = document.querySelector("#heard");

/** All that was heard, one JSON line each: for the page's reader, and for the test that waits for it. */
window.heard = run(
  () => wsconnect({ servers }),
  (line) => page.append(`${JSON.stringify(line)}\n`),
).then(() => page.textContent);
