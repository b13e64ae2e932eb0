// Attacks a server that has the roles of nats.conf with nats.go, as somebody does who has the passwords of three of them.
// A test of that file (../../test_go_attack.py): start it on a server of your own only.
//
//	NATS_URL=… NATS_JS_API_PREFIX=jido.js ATTACKERS='{"client":"secret","observer":"…","session-example":"…"}' \
//		go run ./attack [SUBJECT …]
//
// The subjects are those of one run, such as a manager's own, and are attacked beside the ones that everybody knows.
// It prints one JSON line: for each user how many attempts of each kind it made, what it heard, and what it was granted.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

const (
	attemptsMin = 20_000           // of all users together
	timeout     = 40 * time.Second // of everything
	paceEvery   = 100
	paceTimeout = 5 * time.Second
	callTimeout = 200 * time.Millisecond
)

// attempt is one message. An answer is of interest only if one without an error means that the attack succeeded.
type attempt struct {
	subject string
	reply   string // where the answer does harm; otherwise it comes to us
	header  nats.Header
	payload []byte
	mustNot bool
}

type report struct {
	Attempts   map[string]int `json:"attempts"`   // by kind
	Refused    int            `json:"refused"`    // by the permissions
	Answers    int            `json:"answers"`    // of any kind, errors too
	Pushes     int            `json:"pushes"`     // push consumers that were made, as is allowed onto our inbox
	Unnamed    int            `json:"unnamed"`    // consumers that were made without a name, as is allowed
	Heartbeats int            `json:"heartbeats"` // of push consumers, in our inbox
	Granted    []string       `json:"granted"`    // what should have been refused
}

type attacker struct {
	nc      *nats.Conn
	user    string
	prefix  string // of the JetStream API
	inbox   string
	targets []string
	dice    *rand.Rand

	sent int

	mu     sync.Mutex
	report report
	asked  []string // the subjects of attempts that must not succeed; their reply subjects end in the index
}

func main() {
	log.SetFlags(0)
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	passwords := map[string]string{}
	check(json.Unmarshal([]byte(os.Getenv("ATTACKERS")), &passwords))
	attackers := map[string]*attacker{}
	var group sync.WaitGroup
	for number, user := range sortedKeys(passwords) {
		a := connect(user, passwords[user], uint64(number))
		attackers[user] = a
		group.Go(func() { a.attack(ctx, attemptsMin/len(passwords)+1) })
	}
	go func() {
		group.Wait()
		cancel()
	}()
	<-ctx.Done() // at the latest when the time is over: a server that the attacks have hurt may not answer
	say(attackers)
}

func say(attackers map[string]*attacker) {
	reports := map[string]report{}
	for user, a := range attackers {
		a.mu.Lock() // and not unlocked: this is the end
		reports[user] = a.report
	}
	check(json.NewEncoder(os.Stdout).Encode(reports))
}

func connect(user, password string, seed uint64) *attacker {
	a := &attacker{
		user:    user,
		prefix:  cmp.Or(os.Getenv("NATS_JS_API_PREFIX"), "$JS.API"),
		inbox:   "_INBOX." + user + ".attack.",
		targets: append(slices.Clone(wellKnown), os.Args[1:]...),
		dice:    rand.New(rand.NewPCG(18, seed)),
		report:  report{Attempts: map[string]int{}, Granted: []string{}},
	}
	a.nc = must(nats.Connect(cmp.Or(os.Getenv("NATS_URL"), nats.DefaultURL),
		nats.UserInfo(user, password),
		nats.CustomInboxPrefix("_INBOX."+user),
		nats.ErrorHandler(a.onError),
	))
	return a
}

// attack makes every attempt once, then those that leave no consumer of ours again and again.
func (a *attacker) attack(ctx context.Context, attempts int) {
	defer a.nc.Close()
	must(a.nc.Subscribe(a.inbox+">", a.onAnswer))
	must(a.nc.Subscribe(a.inbox+"pushed", a.onPushed))
	for _, subject := range eventSubjects { // a push consumer delivers where somebody subscribes to that very subject
		must(a.nc.Subscribe(subject, a.onEvent))
	}
	a.takePlaces()
	a.pace()
	kinds := a.kinds()
	var repeated []string
	for _, kind := range sortedKeys(kinds) {
		for _, one := range kinds[kind] {
			a.try(kind, one)
			if kind != "push" && kind != "unnamed" { // a stream accepts so many consumers, and others need some
				repeated = append(repeated, kind)
			}
		}
	}
	a.callStock(ctx)
	for a.sent < attempts && ctx.Err() == nil {
		kind := repeated[a.dice.IntN(len(repeated))] // the more attempts of a kind there are, the oftener
		a.try(kind, kinds[kind][a.dice.IntN(len(kinds[kind]))])
	}
	a.pace()
	a.awaitHeartbeats(ctx)
}

// try sends one attempt.
func (a *attacker) try(kind string, one attempt) {
	a.mu.Lock()
	a.report.Attempts[kind]++
	reply := cmp.Or(one.reply, a.inbox+"x")
	if one.mustNot {
		reply = fmt.Sprint(a.inbox, len(a.asked))
		a.asked = append(a.asked, one.subject)
	}
	a.mu.Unlock()
	check(a.nc.PublishMsg(&nats.Msg{Subject: one.subject, Reply: reply, Header: one.header, Data: one.payload}))
	if a.sent++; a.sent%paceEvery == 0 {
		a.pace()
	}
}

// pace waits until the server, JetStream and the managers have got through what was sent: more at once would only make
// them refuse requests for their number. What does not answer any more is not our affair; the test notices.
func (a *attacker) pace() {
	_ = a.nc.FlushTimeout(paceTimeout)
	subjects := []string{a.prefix + ".INFO", a.prefix + ".CONSUMER.CREATE.JIDO_CLIENT"} // the latter in order, so last
	if strings.HasPrefix(a.user, "session-") {
		subjects = []string{"jido.session.get.example"}
	}
	for _, subject := range subjects {
		_, _ = a.nc.Request(subject, nil, paceTimeout)
	}
}

func (a *attacker) onError(_ *nats.Conn, _ *nats.Subscription, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if errors.Is(err, nats.ErrPermissionViolation) {
		a.report.Refused++
	}
}

// response is what the answers of JetStream have that matters here.
type response struct {
	Error  any
	Name   string
	Config struct {
		DeliverSubject string `json:"deliver_subject"`
	}
}

func (a *attacker) onAnswer(message *nats.Msg) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.report.Answers++
	status := message.Header.Get("Status")
	if status == "503" || strings.HasSuffix(message.Subject, ".pushed") { // nobody is there who answers
		return
	}
	var answer response
	_ = json.Unmarshal(message.Data, &answer) // a stored message is an answer, too
	if index, err := strconv.Atoi(strings.TrimPrefix(message.Subject, a.inbox)); err != nil {
		a.noteConsumer(answer)
	} else if answer.Error == nil {
		a.grant(fmt.Sprint(a.asked[index], ": ", status, string(message.Data)))
	}
}

// noteConsumer looks at a consumer that was made, or changed, and may now be somebody else's.
func (a *attacker) noteConsumer(answer response) {
	switch {
	case slices.Contains(durables(a.user), answer.Name):
		a.grant("a consumer named " + answer.Name)
	case answer.Config.DeliverSubject != "":
		a.report.Pushes++
	case answer.Name != "":
		a.report.Unnamed++
	}
}

// onPlace reports what only a manager, or the one who asked, should hear.
func (a *attacker) onPlace(message *nats.Msg) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.grant("heard on " + message.Sub.Subject + ": " + message.Subject)
}

func (a *attacker) grant(what string) {
	if len(a.report.Granted) < 100 {
		a.report.Granted = append(a.report.Granted, what)
	}
}

// onEvent reports what a push consumer has delivered among the events; the replies that land there are our own attempts'.
func (a *attacker) onEvent(message *nats.Msg) {
	if message.Header.Get("Status") == "100" {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.grant("a heartbeat on " + message.Subject)
	}
}

// onPushed counts heartbeats, and answers flow control, whose reply subject may be turned against the server too.
func (a *attacker) onPushed(message *nats.Msg) {
	if message.Header.Get("Status") != "100" {
		return
	}
	a.mu.Lock()
	a.report.Heartbeats++
	a.mu.Unlock()
	if message.Reply != "" {
		check(a.nc.PublishRequest(message.Reply, eventSubjects[1], nil))
	}
}

// awaitHeartbeats gives the push consumers the time for some.
func (a *attacker) awaitHeartbeats(ctx context.Context) {
	for ctx.Err() == nil {
		a.mu.Lock()
		done := a.report.Heartbeats >= 10 || a.report.Pushes == 0
		a.mu.Unlock()
		if done {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func sortedKeys[V any](values map[string]V) []string {
	keys := make([]string, 0, len(values))
	for key := range values {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

func must[T any](value T, err error) T {
	check(err)
	return value
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
