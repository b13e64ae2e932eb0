// A subscriber of jido_nats in C, with nats.c (and jansson for JSON) and no library of ours.
//
//     make && ./subscriber nats://127.0.0.1:4222
//
// With the roles of nats.conf it also needs NATS_USER, NATS_PASSWORD, NATS_INBOX_PREFIX and NATS_JS_API_PREFIX.

#include <jansson.h>
#include <nats/nats.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EVENTS "jido.client.events"
#define TIMEOUT_MS 10000
#define HOUR_NS (3600LL * 1000 * 1000 * 1000)
#define SUBJECT_MAX 128

static void check(natsStatus status)
{
    if (status == NATS_OK)
        return;
    fprintf(stderr, "%s\n", natsStatus_GetText(status));
    nats_PrintLastErrorStack(stderr);
    exit(1);
}

// Connects, in a role if the environment names one.
static natsConnection *connect_to(const char *url)
{
    natsOptions *options;
    natsConnection *nc;
    check(natsOptions_Create(&options));
    check(natsOptions_SetURL(options, url));
    if (getenv("NATS_USER") != NULL)
        check(natsOptions_SetUserInfo(options, getenv("NATS_USER"), getenv("NATS_PASSWORD")));
    if (getenv("NATS_INBOX_PREFIX") != NULL)
        check(natsOptions_SetCustomInboxPrefix(options, getenv("NATS_INBOX_PREFIX"))); // a role may hear no other
    check(natsConnection_Connect(&nc, options));
    natsOptions_Destroy(options);
    return nc;
}

// The JetStream API, which has another name in the accounts of clients and observers.
static jsCtx *jetstream(natsConnection *nc)
{
    jsOptions options;
    jsCtx *js;
    check(jsOptions_Init(&options));
    if (getenv("NATS_JS_API_PREFIX") != NULL)
        options.Prefix = getenv("NATS_JS_API_PREFIX");
    check(natsConnection_JetStream(&js, nc, &options));
    return js;
}

// Prints one JSON line; takes the reference.
static void say(json_t *line)
{
    json_dumpf(line, stdout, JSON_COMPACT);
    putchar('\n');
    json_decref(line);
}

static int is(json_t *object, const char *field, const char *value)
{
    const char *found = json_string_value(json_object_get(object, field));
    return found != NULL && strcmp(found, value) == 0;
}

// Says what came on a subscription, up to the session's end: each subject tells it in its own way.
static void hear(natsSubscription *subscription, const char *id, const char *field, const char *end)
{
    for (int ended = 0; !ended;) {
        natsMsg *message;
        check(natsSubscription_NextMsg(&message, subscription, TIMEOUT_MS));
        const char *data = natsMsg_GetData(message);
        size_t length = natsMsg_GetDataLength(message);
        say(json_pack("{s:s, s:s%}", "heard", natsMsg_GetSubject(message), "data", data, length));
        json_t *event = json_loadb(data, length, JSON_ALLOW_NUL, NULL);
        ended = is(event, "session_id", id) && is(event, field, end);
        json_decref(event);
        natsMsg_Destroy(message);
    }
}

// Sends a request about a session and says its reply; a failed one is known by two headers.
static void command(natsConnection *nc, const char *step, const char *id, const char *request)
{
    char subject[SUBJECT_MAX];
    snprintf(subject, sizeof(subject), "jido.session.%s%s%s", step, *id ? "." : "", id);
    natsMsg *reply;
    check(natsConnection_RequestString(&reply, nc, subject, request, TIMEOUT_MS));
    const char *data = natsMsg_GetData(reply), *code, *text;
    size_t length = natsMsg_GetDataLength(reply);
    if (natsMsgHeader_Get(reply, "Nats-Service-Error-Code", &code) == NATS_OK) {
        check(natsMsgHeader_Get(reply, "Nats-Service-Error", &text));
        say(json_pack("{s:s, s:s, s:s, s:s%}", "step", "error", "code", code, "text", text, "data", data, length));
    } else {
        say(json_pack("{s:s, s:s%}", "step", step, "data", data, length));
    }
    natsMsg_Destroy(reply);
}

// Says the next entry of the watch; 0 at the end of the snapshot, and when this session's record will not change
// any more. The watch is one consumer of the bucket's stream, so nothing falls between the two.
static int say_next(kvWatcher *records, const char *kind, const char *id)
{
    kvEntry *entry;
    check(kvWatcher_Next(&entry, records, TIMEOUT_MS));
    if (entry == NULL)
        return 0;
    const char *key = kvEntry_Key(entry), *data = kvEntry_Value(entry);
    size_t length = kvEntry_ValueLen(entry);
    if (length == 0) // it marks the record of a session that ended some time ago: it has expired
        kind = "expired", data = "";
    json_int_t revision = kvEntry_Revision(entry);
    say(json_pack("{s:s, s:I, s:s%}", kind, key, "revision", revision, "data", data, length));
    json_t *record = json_loadb(data, length, JSON_ALLOW_NUL, NULL);
    int sealed = strcmp(key, id) == 0 && json_is_true(json_object_get(record, "sealed"));
    json_decref(record);
    kvEntry_Destroy(entry);
    return !sealed;
}

// Reads what is stored with a durable consumer, as a program does that is stopped and started again: the server
// keeps the position, so the next run carries on behind the last acknowledged message.
static void replay(const char *url, const char *durable, int divisor)
{
    natsConnection *nc = connect_to(url);
    jsCtx *js = jetstream(nc);
    jsConsumerConfig config;
    check(jsConsumerConfig_Init(&config));
    config.Durable = durable;
    config.FilterSubject = EVENTS;
    config.AckPolicy = js_AckExplicit;
    config.InactiveThreshold = HOUR_NS; // an example cleans up after itself; an auditor leaves this out
    jsConsumerInfo *info;
    check(js_AddConsumer(&info, js, "JIDO_CLIENT", &config, NULL, NULL));
    // Bound to what we made: a consumer that js_PullSubscribe makes goes when the subscription does.
    jsSubOptions options;
    check(jsSubOptions_Init(&options));
    options.Stream = "JIDO_CLIENT";
    options.Consumer = durable;
    natsSubscription *subscription;
    check(js_PullSubscribe(&subscription, js, EVENTS, durable, NULL, &options, NULL));

    for (uint64_t left = info->NumPending / divisor; left > 0; left--) {
        natsMsgList list; // of one: nothing unread is in our hands when we stop
        check(natsSubscription_Fetch(&list, subscription, 1, TIMEOUT_MS, NULL));
        natsMsg *message = list.Msgs[0];
        jsMsgMetaData *meta;
        check(natsMsg_GetMetaData(&meta, message));
        json_int_t sequence = meta->Sequence.Stream;
        say(json_pack("{s:s, s:I, s:s%}", "replayed", natsMsg_GetSubject(message), "sequence", sequence, "data",
                      natsMsg_GetData(message), (size_t)natsMsg_GetDataLength(message)));
        check(natsMsg_AckSync(message, NULL, NULL)); // the server has it: this message will not come again
        jsMsgMetaData_Destroy(meta);
        natsMsgList_Destroy(&list);
    }
    say(json_pack("{s:s}", "step", "stopped"));
    jsConsumerInfo_Destroy(info);
    natsSubscription_Destroy(subscription);
    jsCtx_Destroy(js);
    natsConnection_Destroy(nc);
}

int main(int argc, char **argv)
{
    const char *url = argc > 1 ? argv[1] : getenv("NATS_URL");
    if (url == NULL)
        url = "nats://127.0.0.1:4222";
    natsConnection *nc = connect_to(url);

    // We choose the id: a create whose reply was lost can be sent again and never makes two sessions.
    natsInbox *inbox;
    check(natsInbox_Create(&inbox)); // its last token is unique
    char id[64], own_subject[SUBJECT_MAX], request[256];
    snprintf(id, sizeof(id), "c-%s", strrchr(inbox, '.') + 1);
    snprintf(own_subject, sizeof(own_subject), "jido.client.session.%s", id);
    snprintf(request, sizeof(request), "{\"session_id\":\"%s\",\"metadata\":{\"from\":\"C, größer <🎈>\"}}", id);

    // Both subjects live, as a plain subscriber hears them: in order, at most once, from now on.
    natsSubscription *events, *own;
    check(natsConnection_SubscribeSync(&events, nc, EVENTS));
    check(natsConnection_SubscribeSync(&own, nc, own_subject));
    check(natsConnection_Flush(nc)); // the server knows them before anything that we ask for happens
    jsCtx *js = jetstream(nc);
    kvStore *bucket;
    kvWatcher *records;
    check(js_KeyValue(&bucket, js, "JIDO_SESSIONS"));
    check(kvStore_WatchAll(&records, bucket, NULL));
    while (say_next(records, "snapshot", id))
        ;

    command(nc, "create", "", request);
    command(nc, "list", "", "");
    command(nc, "get", id, "");
    command(nc, "get", "nobody", "");
    command(nc, "terminate", id, "");
    hear(events, id, "type", "session_terminated");
    hear(own, id, "status", "terminated");
    while (say_next(records, "followed", id))
        ;

    kvWatcher_Destroy(records);
    kvStore_Destroy(bucket);
    jsCtx_Destroy(js);
    natsSubscription_Destroy(events);
    natsSubscription_Destroy(own);
    natsConnection_Destroy(nc);
    replay(url, id, 2); // half of what is there,
    replay(url, id, 1); // and the rest
    natsInbox_Destroy(inbox);
    nats_Close();
    return 0;
}
