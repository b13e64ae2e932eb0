// A subscriber of jido_nats in Java, with jnats and no library of ours.
//
//     mvn -q process-classes && java -cp 'target/classes:target/dependency/*' Subscriber nats://127.0.0.1:4222
//
// With the roles of nats.conf it also needs NATS_USER, NATS_PASSWORD, NATS_INBOX_PREFIX and NATS_JS_API_PREFIX.

import static java.nio.charset.StandardCharsets.UTF_8;

import com.google.gson.Gson;
import com.google.gson.JsonObject;
import io.nats.client.Connection;
import io.nats.client.ConsumerContext;
import io.nats.client.JetStreamOptions;
import io.nats.client.KeyValueOptions;
import io.nats.client.Message;
import io.nats.client.NUID;
import io.nats.client.Nats;
import io.nats.client.Options;
import io.nats.client.Subscription;
import io.nats.client.api.AckPolicy;
import io.nats.client.api.ConsumerConfiguration;
import io.nats.client.api.KeyValueEntry;
import io.nats.client.api.KeyValueWatcher;
import java.io.PrintStream;
import java.time.Duration;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import java.util.function.Predicate;

public class Subscriber {
    static final String EVENTS = "jido.client.events";
    static final Duration TIMEOUT = Duration.ofSeconds(10);
    static final Gson JSON = new Gson();
    static final Map<String, String> ENV = System.getenv();
    static final PrintStream OUT = new PrintStream(System.out, true, UTF_8);

    public static void main(String[] args) throws Exception {
        String url = args.length > 0 ? args[0] : ENV.getOrDefault("NATS_URL", "nats://127.0.0.1:4222");
        // We choose the id: a create whose reply was lost can be sent again and never makes two sessions.
        String id = "java-" + NUID.nextGlobal();
        try (Connection nc = connect(url)) {
            // Both subjects live, as a plain subscriber hears them: in order, at most once, from now on.
            Subscription events = nc.subscribe(EVENTS);
            Subscription own = nc.subscribe("jido.client.session." + id);
            nc.flush(TIMEOUT); // the server knows the subscriptions before anything that we ask for happens
            Records records = new Records(id);
            KeyValueOptions through = KeyValueOptions.builder().jetStreamOptions(jetStream()).build();
            nc.keyValue("JIDO_SESSIONS", through).watchAll(records);
            records.await(records.snapshot);

            Map<String, Object> request = Map.of("session_id", id, "metadata", Map.of("from", "Java, größer <🎈>"));
            command(nc, "create", "jido.session.create", JSON.toJson(request));
            command(nc, "list", "jido.session.list", "");
            command(nc, "get", "jido.session.get." + id, "");
            command(nc, "get", "jido.session.get.nobody", "");
            command(nc, "terminate", "jido.session.terminate." + id, "");

            hear(events, event -> is(event, "session_id", id) && is(event, "type", "session_terminated"));
            hear(own, event -> is(event, "status", "terminated"));
            records.await(records.sealed);
        }
        replay(url, id, 2); // half of what is there,
        replay(url, id, 1); // and the rest
    }

    /** Connects, in a role if the environment names one. */
    static Connection connect(String url) throws Exception {
        Options.Builder options = Options.builder().server(url);
        if (ENV.containsKey("NATS_USER")) options.userInfo(ENV.get("NATS_USER"), ENV.get("NATS_PASSWORD"));
        options.inboxPrefix(ENV.getOrDefault("NATS_INBOX_PREFIX", "_INBOX")); // a role may hear its own inboxes only
        return Nats.connect(options.build());
    }

    /** The JetStream API has another name in the accounts of clients and observers. */
    static JetStreamOptions jetStream() {
        return JetStreamOptions.builder().prefix(ENV.getOrDefault("NATS_JS_API_PREFIX", "$JS.API")).build();
    }

    /** Says what came on a subscription, up to the last message that is of interest. */
    static void hear(Subscription subscription, Predicate<JsonObject> isLast) throws Exception {
        while (true) {
            Message message = subscription.nextMessage(TIMEOUT);
            if (message == null) throw new TimeoutException("the end of the session was not heard");
            String data = new String(message.getData(), UTF_8);
            say("heard", message.getSubject(), "data", data);
            if (isLast.test(JSON.fromJson(data, JsonObject.class))) return;
        }
    }

    /** Sends a request and says its reply; a failed one is known by two headers. */
    static void command(Connection nc, String step, String subject, String request) throws Exception {
        Message reply = nc.request(subject, request.getBytes(UTF_8), TIMEOUT);
        if (reply == null) throw new TimeoutException("no reply on " + subject);
        String data = new String(reply.getData(), UTF_8);
        if (reply.hasHeaders() && reply.getHeaders().containsKey("Nats-Service-Error-Code")) {
            String code = reply.getHeaders().getFirst("Nats-Service-Error-Code");
            say("step", "error", "code", code, "text", reply.getHeaders().getFirst("Nats-Service-Error"), "data", data);
        } else {
            say("step", step, "data", data);
        }
    }

    /**
     * Says the record of every session, and then how records change. The watch is one consumer of the bucket's
     * stream, so nothing falls between the two.
     */
    static class Records implements KeyValueWatcher {
        final String id;
        final CountDownLatch snapshot = new CountDownLatch(1);
        final CountDownLatch sealed = new CountDownLatch(1); // the session's record: it will not change any more

        Records(String id) {
            this.id = id;
        }

        @Override
        public void watch(KeyValueEntry entry) {
            // An entry without a value marks the record of a session that ended some time ago: it has expired.
            String data = entry.getValue() == null ? "" : entry.getValueAsString();
            String kind = data.isEmpty() ? "expired" : snapshot.getCount() > 0 ? "snapshot" : "followed";
            say(kind, entry.getKey(), "revision", entry.getRevision(), "data", data);
            if (entry.getKey().equals(id) && is(JSON.fromJson(data, JsonObject.class), "sealed", "true")) {
                sealed.countDown();
            }
        }

        @Override
        public void endOfData() {
            snapshot.countDown();
        }

        void await(CountDownLatch latch) throws Exception {
            if (!latch.await(TIMEOUT.toSeconds(), TimeUnit.SECONDS)) throw new TimeoutException("no such record came");
        }
    }

    /**
     * Reads what is stored with a durable consumer, as a program does that is stopped and started again: the server
     * keeps the position, so the next run carries on behind the last acknowledged message.
     */
    static void replay(String url, String durable, int divisor) throws Exception {
        try (Connection nc = connect(url)) {
            ConsumerContext consumer = nc.getStreamContext("JIDO_CLIENT", jetStream()).createOrUpdateConsumer(
                ConsumerConfiguration.builder()
                    .durable(durable)
                    .filterSubject(EVENTS)
                    .ackPolicy(AckPolicy.Explicit)
                    .inactiveThreshold(Duration.ofHours(1)) // an example cleans up; an auditor leaves this out
                    .build());
            for (long left = consumer.getConsumerInfo().getNumPending() / divisor; left > 0; left--) {
                Message message = consumer.next(); // one at a time: nothing unread is in our hands when we stop
                long sequence = message.metaData().streamSequence();
                String data = new String(message.getData(), UTF_8);
                say("replayed", message.getSubject(), "sequence", sequence, "data", data);
                message.ackSync(TIMEOUT); // the server has it: this message will not come again
            }
            say("step", "stopped");
        }
    }

    static boolean is(JsonObject object, String field, String value) {
        return object != null && object.has(field) && object.get(field).getAsString().equals(value);
    }

    static void say(Object... namesAndValues) {
        Map<Object, Object> line = new LinkedHashMap<>();
        for (int i = 0; i < namesAndValues.length; i += 2) line.put(namesAndValues[i], namesAndValues[i + 1]);
        OUT.println(JSON.toJson(line));
    }
}
