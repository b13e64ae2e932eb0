//! A subscriber of jido_nats in Rust, with async-nats and no library of ours.
//!
//!     cargo run -- nats://127.0.0.1:4222
//!
//! With the roles of nats.conf it also needs NATS_USER, NATS_PASSWORD, NATS_INBOX_PREFIX and NATS_JS_API_PREFIX.

use std::{env, error::Error, time::Duration};

use async_nats::jetstream::consumer::{AckPolicy, pull};
use async_nats::jetstream::{self, kv};
use async_nats::{Client, ConnectOptions, Subscriber};
use futures_util::StreamExt;
use serde_json::{Value, json};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

const EVENTS: &str = "jido.client.events";

#[tokio::main]
async fn main() -> Result<()> {
    let url = env::args().nth(1).or(env::var("NATS_URL").ok()).unwrap_or("nats://127.0.0.1:4222".into());
    let nc = connect(&url).await?;

    // We choose the id: a create whose reply was lost can be sent again and never makes two sessions.
    let id = format!("rust-{}", nuid::next());
    // Both subjects live, as a plain subscriber hears them: in order, at most once, from now on.
    let events = nc.subscribe(EVENTS).await?;
    let own = nc.subscribe(format!("jido.client.session.{id}")).await?;
    nc.flush().await?; // the server knows the subscriptions before anything that we ask for happens
    let records = snapshot(&nc).await?;

    let request = json!({"session_id": id, "metadata": {"from": "Rust, größer <🎈>"}});
    command(&nc, "create", "jido.session.create", request.to_string()).await?;
    command(&nc, "list", "jido.session.list", String::new()).await?;
    command(&nc, "get", &format!("jido.session.get.{id}"), String::new()).await?;
    command(&nc, "get", "jido.session.get.nobody", String::new()).await?;
    command(&nc, "terminate", &format!("jido.session.terminate.{id}"), String::new()).await?;
    let until_end = async {
        tokio::try_join!(
            hear(events, |event| event["session_id"] == *id && event["type"] == "session_terminated"),
            hear(own, |event| event["status"] == "terminated"),
            follow(records, &id),
        )
    };
    tokio::time::timeout(Duration::from_secs(30), until_end).await??;

    replay(&url, &id, 2).await?; // half of what is there,
    replay(&url, &id, 1).await // and the rest
}

/// Connects, in a role if the environment names one.
async fn connect(url: &str) -> Result<Client> {
    let mut options = ConnectOptions::new();
    if let (Ok(user), Ok(password)) = (env::var("NATS_USER"), env::var("NATS_PASSWORD")) {
        options = options.user_and_password(user, password);
    }
    if let Ok(prefix) = env::var("NATS_INBOX_PREFIX") {
        options = options.custom_inbox_prefix(prefix); // a role may hear its own inboxes only
    }
    Ok(options.connect(url).await?)
}

/// The JetStream API, which has another name in the accounts of clients and observers.
fn jetstream_of(nc: Client) -> jetstream::Context {
    jetstream::with_prefix(nc, &env::var("NATS_JS_API_PREFIX").unwrap_or("$JS.API".into()))
}

/// Says what came on a subscription, up to the last message that is of interest.
async fn hear(mut messages: Subscriber, is_last: impl Fn(&Value) -> bool) -> Result<()> {
    while let Some(message) = messages.next().await {
        say(json!({"heard": message.subject.as_str(), "data": str::from_utf8(&message.payload)?}));
        if is_last(&serde_json::from_slice(&message.payload)?) {
            break;
        }
    }
    Ok(())
}

/// Sends a request and says its reply; a failed one is known by two headers.
async fn command(nc: &Client, step: &str, subject: &str, request: String) -> Result<()> {
    let reply = nc.request(subject.to_owned(), request.into()).await?;
    let data = str::from_utf8(&reply.payload)?;
    let header = |name| reply.headers.as_ref().and_then(|headers| headers.get(name)).map(|value| value.as_str());
    if let Some(code) = header("Nats-Service-Error-Code") {
        say(json!({"step": "error", "code": code, "text": header("Nats-Service-Error"), "data": data}));
    } else {
        say(json!({"step": step, "data": data}));
    }
    Ok(())
}

/// Says the record of every session; what changes afterwards comes from the same watch, which is one consumer
/// of the bucket's stream, so nothing falls between the two.
async fn snapshot(nc: &Client) -> Result<kv::Watch> {
    let bucket = jetstream_of(nc.clone()).get_key_value("JIDO_SESSIONS").await?;
    let empty = bucket.status().await?.values() == 0;
    let mut records = bucket.watch_with_history(">").await?; // the last record of each, then every new one
    while !empty {
        let entry = records.next().await.ok_or("the watch ended")??;
        say_entry("snapshot", &entry)?;
        if entry.delta == 0 {
            break; // there is no more to come: from here on it is live
        }
    }
    Ok(records)
}

/// Says how records change, until the one of this session is sealed: it will not change any more.
async fn follow(mut records: kv::Watch, id: &str) -> Result<()> {
    while let Some(entry) = records.next().await {
        let entry = entry?;
        say_entry("followed", &entry)?;
        if entry.key == id && serde_json::from_slice::<Value>(&entry.value).is_ok_and(|record| record["sealed"] == true)
        {
            break;
        }
    }
    Ok(())
}

fn say_entry(kind: &str, entry: &kv::Entry) -> Result<()> {
    // An entry without a value marks the record of a session that ended some time ago: it has expired.
    let kind = if entry.value.is_empty() { "expired" } else { kind };
    say(json!({kind: entry.key, "revision": entry.revision, "data": str::from_utf8(&entry.value)?}));
    Ok(())
}

/// Reads what is stored with a durable consumer, as a program does that is stopped and started again: the server
/// keeps the position, so the next run carries on behind the last acknowledged message.
async fn replay(url: &str, durable: &str, divisor: u64) -> Result<()> {
    let stream = jetstream_of(connect(url).await?).get_stream("JIDO_CLIENT").await?;
    let config = pull::Config {
        durable_name: Some(durable.to_owned()),
        filter_subject: EVENTS.to_owned(),
        ack_policy: AckPolicy::Explicit,
        inactive_threshold: Duration::from_secs(3600), // an example cleans up; an auditor leaves this out
        ..Default::default()
    };
    let mut consumer = stream.get_or_create_consumer(durable, config).await?;
    for _ in 0..consumer.info().await?.num_pending / divisor {
        // One at a time: nothing unread is in our hands when we stop.
        let mut batch = consumer.batch().max_messages(1).messages().await?;
        let message = batch.next().await.ok_or("no message")??;
        let sequence = message.info()?.stream_sequence;
        say(
            json!({"replayed": message.subject.as_str(), "sequence": sequence, "data": str::from_utf8(&message.payload)?}),
        );
        message.double_ack().await?; // the server has it: this message will not come again
    }
    say(json!({"step": "stopped"}));
    Ok(())
}

fn say(line: Value) {
    println!("{line}");
}
