package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const example = "jido.client.session.example"

var (
	streams       = []string{"JIDO_CLIENT", "JIDO_OUTPUT", "KV_JIDO_SESSIONS"}
	eventSubjects = []string{"jido.client.events", example, example + ".output"}
	forged        = []byte(`{"type":"session_status","session_id":"example","version":3,"status":"terminated",` +
		`"previous_status":"active","updated_at":"2025-01-24T10:30:00Z","reason":"crashed"}`)

	// wellKnown is where an answer, or a message that is delivered, would do harm.
	wellKnown = []string{
		"jido.client.events",
		example,
		example + ".output",
		"jido.fence.example",
		"$KV.JIDO_SESSIONS.example",
		"$KV.JIDO_SESSIONS.forged",
		"$KV.JIDO_MANAGERS.forged",
		"jido.session.terminate.example",
		"jido.admin.erase.example",
		"jido.consumer.client.CREATE.JIDO_CLIENT.audit",
		"jido.consumer.observer.CREATE.JIDO_CLIENT.observer",
		"$SRV.PING",
		"$JS.API.STREAM.PURGE.JIDO_CLIENT",
		"$JS.API.STREAM.DELETE.KV_JIDO_SESSIONS",
		"$JS.API.CONSUMER.DELETE.JIDO_CLIENT.audit",
		"$JS.API.CONSUMER.DELETE.JIDO_CLIENT.observer",
		"_INBOX.manager.x",
		"_INBOX.manager-api.x",
		"_R_.x",
	}
	places = []string{
		"jido.session.create", "jido.session.*.*", "jido.session.>", "$SRV.>", "$JS.API.>", "$KV.>", ">",
		"_INBOX.>", "_INBOX.*.>", "_INBOX.manager.>", "_INBOX.manager-api.>", "_R_.>", "_R_.*.*",
	}
)

// durables gives those that nats.conf denies this user, by name.
func durables(user string) []string {
	known := map[string][]string{"client": {"observer"}, "observer": {"audit"}}
	if names, ok := known[user]; ok {
		return names
	}
	return []string{"audit", "observer"}
}

// takePlaces subscribes where managers do, and where others receive their replies.
func (a *attacker) takePlaces() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, subject := range places {
		a.report.Attempts["place"] += 2
		must(a.nc.Subscribe(subject, a.onPlace))
		must(a.nc.QueueSubscribe(subject, "q", a.onPlace))
	}
}

// kinds gives every attempt that is one message.
func (a *attacker) kinds() map[string][]attempt {
	kinds := map[string][]attempt{
		"publish":  a.publishes(),
		"reply":    a.replies(),
		"push":     a.pushes(),
		"stream":   a.streamChanges(),
		"durable":  a.durableChanges(),
		"ack":      a.acknowledgements(),
		"unnamed":  a.unnamed(),
		"trace":    a.traces(),
		"pretence": a.pretences(),
	}
	if verbs := a.commands(); len(verbs) > 0 {
		kinds["command"] = verbs
	}
	return kinds
}

// publishes are forged events, records, leases, claims and requests, except what the role is for.
func (a *attacker) publishes() []attempt {
	var list []attempt
	for _, target := range a.targets {
		own := target == "jido.session.terminate.example" && a.user != "observer"
		asks := target == "$SRV.PING" || strings.HasPrefix(target, "$JS.API.")
		if !own && !asks {
			list = append(list, attempt{subject: target, payload: forged, mustNot: true})
		}
	}
	return list
}

// commands are requests that change a session on which the role may not act.
func (a *attacker) commands() []attempt {
	other := map[string]string{"observer": "example", "session-example": "other"}[a.user]
	var list []attempt
	for _, verb := range []string{"terminate", "idle", "activate", "send"} {
		if other != "" {
			list = append(list, attempt{subject: "jido.session." + verb + "." + other, mustNot: true})
		}
	}
	return list
}

// replies are requests that are allowed, or nearly; their answers go to the targets.
func (a *attacker) replies() []attempt {
	mine := "mine-" + a.user
	list := []attempt{
		{subject: a.prefix + ".INFO"},
		{subject: a.prefix + ".STREAM.NAMES"},
		{subject: "$JS.API.INFO"},
		{subject: "$JS.ACK.JIDO_CLIENT." + mine + ".1.1.1.1.1", payload: []byte("+NXT")},
		{subject: "jido.session.get.example"},
		{subject: "jido.session.history.example"},
		{subject: "jido.session.list"},
		{subject: "$SRV.INFO"},
		{subject: "$SYS.REQ.USER.INFO"},
	}
	for _, stream := range streams {
		pull := []byte(`{"batch":3,"no_wait":true}`)
		list = append(list,
			attempt{subject: a.api("CONSUMER.CREATE", stream, mine), payload: created(stream, config(mine))},
			attempt{subject: a.api("CONSUMER.INFO", stream, mine)},
			attempt{subject: a.api("CONSUMER.MSG.NEXT", stream, mine), payload: pull},
			attempt{subject: a.api("STREAM.INFO", stream), payload: []byte(`{"subjects_filter":">"}`)},
			attempt{subject: a.api("STREAM.MSG.GET", stream), payload: []byte(`{"seq":1}`)},
			attempt{subject: a.api("DIRECT.GET", stream), payload: []byte(`{"seq":1,"batch":5}`)},
			attempt{subject: "$JS.FC." + stream + "." + mine + ".x"},
		)
	}
	return a.ontoTargets(list)
}

// ontoTargets gives each request with each target as its reply subject.
func (a *attacker) ontoTargets(requests []attempt) []attempt {
	var list []attempt
	for _, one := range requests {
		for _, target := range a.targets {
			one.reply = target
			list = append(list, one)
		}
	}
	return list
}

// traces ask the server to publish the path of a message on the targets.
func (a *attacker) traces() []attempt {
	var list []attempt
	for _, target := range a.targets {
		for _, subject := range []string{"jido.session.get.example", a.prefix + ".INFO", "jido.session.list"} {
			header := nats.Header{"Nats-Trace-Dest": {target}}
			list = append(list, attempt{subject: subject, header: header})
		}
	}
	return list
}

// pretences claim, with the header by which the server itself says so, that a request is of the streams' account.
func (a *attacker) pretences() []attempt {
	var list []attempt
	for _, one := range append(a.streamChanges(), a.durableChanges()...) {
		for _, claim := range []string{`{"acc":"JIDO"}`, `{"acc":"JIDO","svc":"JIDO"}`} {
			one.header = nats.Header{"Nats-Request-Info": {claim}}
			list = append(list, one)
		}
	}
	return list
}

// pushes would have the server deliver stored messages, heartbeats and flow control to the targets: from new consumers,
// from nameless ones, and from one that has been ours and delivered to us.
func (a *attacker) pushes() []attempt {
	var list []attempt
	for _, stream := range streams {
		own := pushed("push-"+a.user, a.inbox+"pushed", "")
		list = append(list, attempt{subject: a.api("CONSUMER.CREATE", stream, own.Name), payload: created(stream, own)})
		for number, target := range a.targets {
			for _, group := range []string{"", "q"} {
				fresh := pushed(fmt.Sprint(own.Name, "-", number, group), target, group)
				nameless, moved := pushed("", target, group), pushed(own.Name, target, group)
				list = append(list,
					attempt{subject: a.api("CONSUMER.CREATE", stream, fresh.Name), payload: created(stream, fresh), mustNot: true},
					attempt{subject: a.api("CONSUMER.CREATE", stream), payload: created(stream, nameless), mustNot: true},
					attempt{subject: a.api("CONSUMER.CREATE", stream, own.Name), payload: created(stream, moved), mustNot: true},
				)
			}
		}
	}
	return list
}

func pushed(name, target, group string) jetstream.ConsumerConfig {
	push := config(name)
	push.DeliverSubject, push.DeliverGroup = target, group
	push.AckPolicy = jetstream.AckNonePolicy
	if group == "" {
		push.IdleHeartbeat, push.FlowControl = 100*time.Millisecond, true
	}
	return push
}

// streamChanges delete, purge and change the streams and the buckets, and what is stored in them.
func (a *attacker) streamChanges() []attempt {
	var list []attempt
	for _, stream := range append(slices.Clone(streams), "KV_JIDO_MANAGERS") {
		changed := marshal(jetstream.StreamConfig{Name: stream, Subjects: []string{"nothing"}, MaxMsgs: 1})
		removed := []byte(`{"seq":1}`)
		copied := []byte(`{"deliver_subject":"` + a.inbox + `snapshot"}`)
		for _, prefix := range []string{a.prefix, "$JS.API"} {
			list = append(list,
				attempt{subject: prefix + ".STREAM.DELETE." + stream, mustNot: true},
				attempt{subject: prefix + ".STREAM.PURGE." + stream, mustNot: true},
				attempt{subject: prefix + ".STREAM.UPDATE." + stream, payload: changed, mustNot: true},
				attempt{subject: prefix + ".STREAM.CREATE." + stream, payload: changed, mustNot: true},
				attempt{subject: prefix + ".STREAM.MSG.DELETE." + stream, payload: removed, mustNot: true},
				attempt{subject: prefix + ".STREAM.SNAPSHOT." + stream, payload: copied, mustNot: true},
				attempt{subject: prefix + ".STREAM.LEADER.STEPDOWN." + stream, mustNot: true},
			)
		}
	}
	return list
}

// durableChanges change, read and delete the durables of other roles.
func (a *attacker) durableChanges() []attempt {
	var list []attempt
	for _, durable := range append(durables(a.user), "*", ">") {
		for _, prefix := range []string{a.prefix, "$JS.API"} {
			for _, verb := range []string{"DELETE", "INFO", "MSG.NEXT", "PAUSE", "UNPIN", "RESET", "LEADER.STEPDOWN"} {
				subject := prefix + ".CONSUMER." + verb + ".JIDO_CLIENT." + durable
				list = append(list, attempt{subject: subject, mustNot: true})
			}
			for _, payload := range changes(durable) {
				tail := ".JIDO_CLIENT." + durable
				for _, subject := range []string{"CREATE" + tail, "CREATE" + tail + ".nothing", "DURABLE.CREATE" + tail} {
					list = append(list, attempt{subject: prefix + ".CONSUMER." + subject, payload: payload, mustNot: true})
				}
			}
		}
	}
	return list
}

// changes are payloads that would make another consumer of it.
func changes(durable string) [][]byte {
	other := config(durable)
	other.Durable, other.FilterSubject, other.InactiveThreshold = durable, "nothing", time.Second
	pushed := other
	pushed.DeliverSubject = eventSubjects[0]
	var list [][]byte
	for _, changed := range []jetstream.ConsumerConfig{other, pushed} {
		for _, action := range []string{"", "create", "update"} {
			list = append(list, request("JIDO_CLIENT", changed, action))
		}
	}
	return list
}

// acknowledgements are those of messages that others have received and not yet acknowledged, in each form.
func (a *attacker) acknowledgements() []attempt {
	var list []attempt
	for _, durable := range durables(a.user) {
		for sequence := range 12 {
			for _, payload := range []string{"+ACK", "-NAK", "+TERM", "+NXT"} {
				for _, first := range []string{"", "_.hash.", "JIDO_CLIENT.audit.", "JIDO_CLIENT.observer."} {
					tail := fmt.Sprintf("JIDO_CLIENT.%s.1.%d.%d.1.0", durable, sequence+1, sequence%3+1)
					subject := "$JS.ACK." + first + tail
					list = append(list,
						attempt{subject: subject, payload: []byte(payload), mustNot: true},
						attempt{subject: subject + ".token", payload: []byte(payload), mustNot: true},
					)
				}
			}
		}
	}
	return list
}

// unnamed creates consumers whose payload has the name of somebody else's, and the subject none or another one.
func (a *attacker) unnamed() []attempt {
	var list []attempt
	for _, durable := range durables(a.user) {
		for _, payload := range append(changes(durable), created("JIDO_CLIENT", config(durable))) {
			for _, tail := range []string{"", ".mine-x", ".mine-x.nothing"} {
				subject := a.api("CONSUMER.CREATE", "JIDO_CLIENT") + tail
				list = append(list, attempt{subject: subject, payload: payload, mustNot: true})
			}
			list = append(list,
				attempt{subject: a.api("CONSUMER.CREATE", "JIDO_OUTPUT"), payload: payload, mustNot: true},
				attempt{subject: a.api("CONSUMER.CREATE", "JIDO_OUTPUT", "mine-x"), payload: payload, mustNot: true},
				attempt{subject: a.api("CONSUMER.DURABLE.CREATE", "JIDO_CLIENT", "mine-x"), payload: payload, mustNot: true},
			)
		}
	}
	nameless := config("")
	nameless.InactiveThreshold = time.Second
	for range 10 { // allowed: this shows that what is refused above is refused for its name
		subject := a.api("CONSUMER.CREATE", "JIDO_CLIENT")
		list = append(list, attempt{subject: subject, payload: created("JIDO_CLIENT", nameless)})
	}
	return list
}

// callStock tries the same with the library's own methods, as a program does that does not know the subjects.
func (a *attacker) callStock(ctx context.Context) {
	calls := a.stockCalls()
	for _, name := range sortedKeys(calls) {
		limited, cancel := context.WithTimeout(ctx, callTimeout)
		err := calls[name](limited)
		cancel()
		a.mu.Lock()
		a.report.Attempts["stock"]++
		if err == nil {
			a.grant(name)
		}
		a.mu.Unlock()
	}
}

type call = func(context.Context) error

func (a *attacker) stockCalls() map[string]call {
	js := must(jetstream.NewWithAPIPrefix(a.nc, a.prefix))
	calls := map[string]call{}
	for _, stream := range streams {
		calls["DeleteStream "+stream] = func(ctx context.Context) error { return js.DeleteStream(ctx, stream) }
		calls["Purge "+stream] = func(ctx context.Context) error { return purge(ctx, js, stream) }
		calls["UpdateStream "+stream] = func(ctx context.Context) error {
			_, err := js.UpdateStream(ctx, jetstream.StreamConfig{Name: stream, MaxMsgs: 1})
			return err
		}
	}
	for _, durable := range durables(a.user) {
		calls["DeleteConsumer "+durable] = func(ctx context.Context) error {
			return js.DeleteConsumer(ctx, "JIDO_CLIENT", durable)
		}
		calls["UpdateConsumer "+durable] = func(ctx context.Context) error {
			_, err := js.UpdateConsumer(ctx, "JIDO_CLIENT", config(durable))
			return err
		}
	}
	for _, bucket := range []string{"JIDO_SESSIONS", "JIDO_MANAGERS"} {
		calls["Put "+bucket] = func(ctx context.Context) error { return put(ctx, js, bucket) }
	}
	return calls
}

func purge(ctx context.Context, js jetstream.JetStream, stream string) error {
	found, err := js.Stream(ctx, stream)
	if err != nil {
		return err
	}
	return found.Purge(ctx)
}

func put(ctx context.Context, js jetstream.JetStream, bucket string) error {
	found, err := js.KeyValue(ctx, bucket)
	if err != nil {
		return err
	}
	_, err = found.Put(ctx, "example", forged)
	return err
}

func (a *attacker) api(verb string, tokens ...string) string {
	return a.prefix + "." + verb + "." + strings.Join(tokens, ".")
}

func config(name string) jetstream.ConsumerConfig {
	return jetstream.ConsumerConfig{Name: name, AckPolicy: jetstream.AckExplicitPolicy, InactiveThreshold: 10 * time.Minute}
}

func created(stream string, config jetstream.ConsumerConfig) []byte {
	return request(stream, config, "")
}

func request(stream string, config jetstream.ConsumerConfig, action string) []byte {
	return marshal(map[string]any{"stream_name": stream, "config": config, "action": action})
}

func marshal(value any) []byte { return must(json.Marshal(value)) }
