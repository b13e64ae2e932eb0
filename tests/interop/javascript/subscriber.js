// A subscriber of jido_nats in JavaScript, with the official clients and no library of ours.
// The same code runs on Node (node.js) and in a browser (browser.js): only how one connects differs.

import { AckPolicy, jetstream, jetstreamManager } from "@nats-io/jetstream";
import { Kvm } from "@nats-io/kv";
import { nanos, nuid } from "@nats-io/nats-core";

const EVENTS = "jido.client.events";
const ONE_HOUR_MS = 3_600_000;
const TIMEOUT_MS = 5_000;

/**
 * The whole story. `connect()` opens a connection, `say(line)` is given an object for each thing heard. The JetStream
 * API has another name, `apiPrefix`, in the accounts of clients and observers.
 */
export async function run(connect, say, apiPrefix = "$JS.API") {
  const nc = await connect();
  // We choose the id: a create whose reply was lost can be sent again and never makes two sessions.
  const id = `js-${nuid.next()}`;

  const heard = listen(nc, say, EVENTS, (event) => event.session_id === id && event.type === "session_terminated");
  const own = listen(nc, say, `jido.client.session.${id}`, (event) => event.status === "terminated");
  await nc.flush(); // the server knows the subscriptions before anything that we ask for happens
  const followed = await snapshot(jetstream(nc, { apiPrefix }), say, id);

  const request = { session_id: id, metadata: { from: "JavaScript, größer <🎈>" } };
  await command(nc, say, "create", "jido.session.create", request);
  await command(nc, say, "list", "jido.session.list");
  await command(nc, say, "get", `jido.session.get.${id}`);
  await command(nc, say, "get", "jido.session.get.nobody");
  await command(nc, say, "terminate", `jido.session.terminate.${id}`);
  await Promise.all([heard, own, followed.sealed]);
  await nc.close();

  await replay(connect, say, apiPrefix, id, 2); // half of what is there,
  await replay(connect, say, apiPrefix, id, 1); // and the rest
}

/** Hear a subject live, as a plain subscriber: in order, at most once, from now on. */
async function listen(nc, say, subject, isLast) {
  for await (const message of nc.subscribe(subject)) {
    say({ heard: message.subject, data: message.string() });
    if (isLast(message.json())) return; // leaving the loop unsubscribes
  }
}

/** Send a request and say its reply; a failed one is known by two headers. */
async function command(nc, say, step, subject, request) {
  const payload = request === undefined ? undefined : JSON.stringify(request);
  const reply = await nc.request(subject, payload, { timeout: TIMEOUT_MS });
  const code = reply.headers?.get("Nats-Service-Error-Code");
  if (code) {
    say({ step: "error", code, text: reply.headers.get("Nats-Service-Error"), data: reply.string() });
  } else {
    say({ step, data: reply.string() });
  }
}

/**
 * Say the record of every session, and then, in the background, how records change: one watch gives both,
 * so nothing falls between them. `sealed` is kept when all that will ever be of session `id` was said.
 */
async function snapshot(js, say, id) {
  const bucket = await new Kvm(js).open("JIDO_SESSIONS");
  const { values } = await bucket.status();
  const entries = await bucket.watch();
  let taken;
  const complete = new Promise((resolve) => (taken = resolve));

  async function follow() {
    let kind = "followed";
    if (values > 0) kind = "snapshot";
    else taken();
    for await (const entry of entries) {
      // An entry without a value marks the record of a session that ended some time ago: it has expired.
      say({ [entry.length ? kind : "expired"]: entry.key, revision: entry.revision, data: entry.string() });
      if (kind === "snapshot" && entry.delta === 0) {
        kind = "followed"; // there is no more to come: from here on it is live
        taken();
      }
      if (entry.key === id && entry.length && entry.json().sealed) return;
    }
  }

  const sealed = follow();
  await Promise.race([complete, sealed]);
  return { sealed };
}

/**
 * Read what is stored with a durable consumer, as a program does that is stopped and started again: the server
 * keeps the position, so the next run carries on behind the last acknowledged message.
 */
async function replay(connect, say, apiPrefix, durable, divisor) {
  const nc = await connect();
  const { consumers } = await jetstreamManager(nc, { apiPrefix });
  await consumers.add("JIDO_CLIENT", {
    durable_name: durable,
    filter_subject: EVENTS,
    ack_policy: AckPolicy.Explicit,
    inactive_threshold: nanos(ONE_HOUR_MS), // an example cleans up after itself; an auditor leaves this out
  });
  const consumer = await jetstream(nc, { apiPrefix }).consumers.get("JIDO_CLIENT", durable);
  const { num_pending } = await consumer.info();
  for (let left = Math.floor(num_pending / divisor); left > 0; left--) {
    const message = await consumer.next(); // one at a time: nothing unread is in our hands when we stop
    say({ replayed: message.subject, sequence: message.seq, data: message.string() });
    await message.ackAck(); // the server has it: this message will not come again
  }
  say({ step: "stopped" });
  await nc.close();
}
