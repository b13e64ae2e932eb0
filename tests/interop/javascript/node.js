// npm install && node node.js nats://127.0.0.1:4222

import { connect } from "@nats-io/transport-node";
import { run } from "./subscriber.js";

const servers = process.argv[2] ?? process.env.NATS_URL ?? "nats://127.0.0.1:4222";

await run(
  () => connect({ servers }),
  (line) => console.log(JSON.stringify(line)),
);
