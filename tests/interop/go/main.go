// A subscriber of jido_nats in Go, with nats.go and no library of ours.
//
//	go run . nats://127.0.0.1:4222
//
// With the roles of nats.conf it also needs NATS_USER, NATS_PASSWORD, NATS_INBOX_PREFIX and NATS_JS_API_PREFIX.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"log"
	"os"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"
)

type fields map[string]any

func main() {
	log.SetFlags(0)
	url := cmp.Or(append(os.Args, "")[1], os.Getenv("NATS_URL"), nats.DefaultURL)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	nc := connect(url)
	defer nc.Close()

	// We choose the id: a create whose reply was lost can be sent again and never makes two sessions.
	id := "go-" + nuid.Next()
	live := listen(nc, id)
	records := snapshot(ctx, nc)

	command(nc, "create", "jido.session.create", fields{"session_id": id, "metadata": fields{"from": "Go, größer <🎈>"}})
	command(nc, "list", "jido.session.list", nil)
	command(nc, "get", "jido.session.get."+id, nil)
	command(nc, "get", "jido.session.get.nobody", nil)
	command(nc, "terminate", "jido.session.terminate."+id, nil)
	follow(ctx, id, live, records)

	replay(ctx, url, id, 2) // half of what is there,
	replay(ctx, url, id, 1) // and the rest
}

// connect opens a connection, in a role if the environment names one.
func connect(url string) *nats.Conn {
	return must(nats.Connect(url,
		nats.UserInfo(os.Getenv("NATS_USER"), os.Getenv("NATS_PASSWORD")),
		nats.CustomInboxPrefix(cmp.Or(os.Getenv("NATS_INBOX_PREFIX"), "_INBOX")), // a role may hear its own inboxes only
	))
}

// jetStream gives the JetStream API, which has another name in the accounts of clients and observers.
func jetStream(nc *nats.Conn) jetstream.JetStream {
	return must(jetstream.NewWithAPIPrefix(nc, cmp.Or(os.Getenv("NATS_JS_API_PREFIX"), jetstream.DefaultAPIPrefix)))
}

// listen hears both subjects live, as a plain subscriber: in order, at most once, from now on.
func listen(nc *nats.Conn, id string) <-chan *nats.Msg {
	live := make(chan *nats.Msg, 1024)
	must(nc.ChanSubscribe("jido.client.events", live))
	must(nc.ChanSubscribe("jido.client.session."+id, live))
	check(nc.Flush()) // the server knows the subscriptions before anything that we ask for happens
	return live
}

// command sends a request and says its reply; a failed one is known by two headers.
func command(nc *nats.Conn, step, subject string, request fields) {
	var body []byte
	if request != nil {
		body = must(json.Marshal(request))
	}
	reply := must(nc.Request(subject, body, 5*time.Second))
	if code := reply.Header.Get("Nats-Service-Error-Code"); code != "" {
		text := reply.Header.Get("Nats-Service-Error")
		say(fields{"step": "error", "code": code, "text": text, "data": string(reply.Data)})
		return
	}
	say(fields{"step": step, "data": string(reply.Data)})
}

// snapshot says the record of every session; what changes afterwards comes from the same watcher,
// which is one consumer of the bucket's stream, so nothing falls between the two.
func snapshot(ctx context.Context, nc *nats.Conn) <-chan jetstream.KeyValueEntry {
	bucket := must(jetStream(nc).KeyValue(ctx, "JIDO_SESSIONS"))
	records := must(bucket.WatchAll(ctx)).Updates()
	for entry := range records {
		if entry == nil { // the end of the snapshot
			break
		}
		sayEntry("snapshot", entry)
	}
	return records
}

// follow says what was heard live and how records changed, until the session is over.
func follow(ctx context.Context, id string, live <-chan *nats.Msg, records <-chan jetstream.KeyValueEntry) {
	for ends, sealed := 0, false; ends < 2 || !sealed; { // each subject tells the end in its own way
		select {
		case message := <-live:
			say(fields{"heard": message.Subject, "data": string(message.Data)})
			var event struct {
				SessionID string `json:"session_id"`
				Type      string
				Status    string
			}
			check(json.Unmarshal(message.Data, &event))
			ofSession := message.Subject == "jido.client.session."+id && event.Status == "terminated"
			if ofSession || (event.SessionID == id && event.Type == "session_terminated") {
				ends++
			}
		case entry := <-records:
			sayEntry("followed", entry)
			var record struct{ Sealed bool } // all events are stored, and nothing will change any more
			if entry.Key() == id && json.Unmarshal(entry.Value(), &record) == nil && record.Sealed {
				sealed = true
			}
		case <-ctx.Done():
			log.Fatal("the end of the session was not heard")
		}
	}
}

func sayEntry(kind string, entry jetstream.KeyValueEntry) {
	if entry.Operation() != jetstream.KeyValuePut { // the record of a session that ended some time ago has expired
		kind = "expired"
	}
	say(fields{kind: entry.Key(), "revision": entry.Revision(), "data": string(entry.Value())})
}

// replay reads what is stored with a durable consumer, as a program does that is stopped and started again:
// the server keeps the position, so the next run carries on behind the last acknowledged message.
func replay(ctx context.Context, url, durable string, divisor uint64) {
	nc := connect(url)
	defer nc.Close()
	consumer := must(jetStream(nc).CreateOrUpdateConsumer(ctx, "JIDO_CLIENT", jetstream.ConsumerConfig{
		Durable:           durable,
		FilterSubject:     "jido.client.events",
		AckPolicy:         jetstream.AckExplicitPolicy,
		InactiveThreshold: time.Hour, // an example cleans up after itself; an auditor leaves this out
	}))
	for left := consumer.CachedInfo().NumPending / divisor; left > 0; left-- {
		message := must(consumer.Next()) // one at a time: nothing unread is in our hands when we stop
		sequence := must(message.Metadata()).Sequence.Stream
		say(fields{"replayed": message.Subject(), "sequence": sequence, "data": string(message.Data())})
		check(message.DoubleAck(ctx)) // the server has it: this message will not come again
	}
	say(fields{"step": "stopped"})
}

func say(line fields) { check(json.NewEncoder(os.Stdout).Encode(line)) }

func must[T any](value T, err error) T {
	check(err)
	return value
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
