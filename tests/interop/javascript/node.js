// npm install && node node.js nats://127.0.0.1:4222
// With the roles of nats.conf it also needs NATS_USER, NATS_PASSWORD, NATS_INBOX_PREFIX and NATS_JS_API_PREFIX.

import { connect } from "@nats-io/transport-node";
import { run } from "./subscriber.js";

const { NATS_URL, NATS_USER, NATS_PASSWORD, NATS_INBOX_PREFIX, NATS_JS_API_PREFIX } = process.env;
const servers = process.argv[2] ?? NATS_URL ?? "nats://127.0.0.1:4222";

await run(
  () => connect({ servers, user: NATS_USER, pass: NATS_PASSWORD, inboxPrefix: NATS_INBOX_PREFIX }),
  (line) => console.log(JSON.stringify(line)),
  NATS_JS_API_PREFIX,
);
