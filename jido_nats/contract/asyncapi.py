"""The contract as AsyncAPI 3: channels, operations with their replies and errors, headers, streams and buckets.

It is written from a session manager's side, which sends events and receives commands.
"""

from typing import Any, Final

from jido_nats import trace
from jido_nats.broker import jetstream, micro
from jido_nats.contract import schema
from jido_nats.core import requests, subjects
from jido_nats.core.codec import Encoding
from jido_nats.core.commands import COMMANDS, ERRORS_OF_EVERY_COMMAND, About, Command
from jido_nats.core.events import SessionStatus
from jido_nats.core.settings import Settings
from jido_nats.store import topology

COPY_SUFFIX: Final = r"\.session"

Document = dict[str, Any]


def document() -> Document:
    """The AsyncAPI document of a manager with default settings."""
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "jido_nats session manager",
            "version": schema.CONTRACT_VERSION,
            "description": schema.DESCRIPTION,
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": Encoding.JSON.content_type,
        "servers": {"local": {"host": "127.0.0.1:4222", "protocol": "nats"}},
        "channels": _event_channels() | _command_channels(),
        "operations": _event_operations() | _command_operations(),
        "components": {"messages": _messages(), "schemas": schema.definitions("#/components/schemas/")},
        "x-jetstream": _jetstream(),
    }


def _event_channels() -> Document:
    return {
        "events": {
            "address": subjects.EVENTS,
            "description": "Every event of every session; those of one session in the order of its versions.",
            "messages": _references(kind.__name__ for kind in schema.EVENTS),
        },
        "session": {
            "address": _address(subjects.ALL_SESSIONS),
            "description": "The `session_status` events of one session: copies, each stored after its original on "
            "`events`.",
            "parameters": _SESSION_PARAMETER,
            "messages": _references([f"{SessionStatus.__name__}Copy"]),
        },
        "output": {
            "address": _address(subjects.ALL_OUTPUT),
            "description": "The output and the conversation of the session's worker; no status changes.",
            "parameters": _SESSION_PARAMETER,
            "messages": _references(kind.__name__ for kind in schema.OUTPUTS),
        },
    }


def _event_operations() -> Document:
    summaries = {
        "events": "Publish every status change.",
        "session": "Publish one session's status changes.",
        "output": "Publish a worker's output and conversation.",
    }
    return {
        f"tell_{channel}": {"action": "send", "channel": _channel(channel), "summary": summary}
        for channel, summary in summaries.items()
    }


def _command_channels() -> Document:
    channels: Document = {}
    for verb, command in COMMANDS.items():
        parameter = f"{command.about}_id"
        channel = {"address": _address(command.subject, parameter), "messages": _references([_request_name(verb)])}
        if command.about is not About.NOTHING:
            channel["parameters"] = {parameter: _ID_PARAMETER}
        channels[verb] = channel
        channels[f"{verb}_reply"] = {
            "address": None,
            "description": "The request's reply subject. It must be an inbox; no other reply subject is answered.",
            "messages": _references([_reply_name(verb), *map(_error_name, _errors(command))]),
        }
    return channels


def _command_operations() -> Document:
    return {
        verb: {
            "action": "receive",
            "channel": _channel(verb),
            "summary": command.summary,
            "bindings": {"nats": {"queue": micro.QUEUE_GROUP, "bindingVersion": "0.1.0"}},
            "reply": {"channel": _channel(f"{verb}_reply")},
        }
        for verb, command in COMMANDS.items()
    }


def _messages() -> Document:
    messages = {kind.__name__: _event_message(kind, "") for kind in schema.EVENTS}
    messages[f"{SessionStatus.__name__}Copy"] = _event_message(SessionStatus, COPY_SUFFIX)
    messages |= {kind.__name__: _output_message(kind) for kind in schema.OUTPUTS}
    for verb, command in COMMANDS.items():
        messages[_request_name(verb)] = {
            "summary": f"{command.summary} An empty payload means the default for every field.",
            "headers": _object({"Content-Type": _CONTENT_TYPE, trace.HEADER: _TRACEPARENT}),
            "payload": _schema(command.request),
        }
        messages[_reply_name(verb)] = {
            "headers": _object({"Content-Type": _CONTENT_TYPE}, "Content-Type"),
            "payload": _schema(command.reply),
        }
    return messages | {_error_name(code): _error_message(code) for code in schema.ERRORS}


def _event_message(kind: type[Any], suffix: str) -> Document:
    message_id = rf"^[A-Za-z0-9_-]{{1,64}}\.[0-9]+\.{kind.__struct_config__.tag}{suffix}$"
    headers = {
        jetstream.MESSAGE_ID: _text("session id, version and type; identifies the event forever", pattern=message_id),
        jetstream.CONTENT_TYPE: _CONTENT_TYPE,
        jetstream.EXPECTED_SEQUENCE: _text(
            "the sequence of the last claim on the session, which fences off older owners; 0 before the first claim",
            pattern=_INT,
        ),
        jetstream.EXPECTED_SUBJECT: _text(
            "the subject of the session's claims", pattern=r"^jido\.fence\.[A-Za-z0-9_-]{1,64}$"
        ),
    }
    required = list(headers)
    headers[jetstream.EXPECTED_STREAM] = _text("the stream of events; absent from events of older managers")
    headers[trace.HEADER] = _TRACEPARENT
    return {
        "name": kind.__struct_config__.tag,
        "headers": _object(headers, *required),
        "payload": _schema(kind),
    }


def _output_message(kind: type[Any]) -> Document:
    headers = {
        jetstream.MESSAGE_ID: _text(
            "session id, the attempt if the session has a restart policy, and number",
            pattern=r"^[A-Za-z0-9_-]{1,64}\.([0-9]+\.)?[0-9]+\.output$",
        ),
        jetstream.CONTENT_TYPE: _CONTENT_TYPE,
        jetstream.EXPECTED_STREAM: _text("the stream of output, or `none` for what is not stored"),
        trace.HEADER: _TRACEPARENT,
    }
    return {
        "name": kind.__struct_config__.tag,
        "headers": _object(headers, jetstream.CONTENT_TYPE),
        "payload": _schema(kind),
    }


def _error_message(code: str) -> Document:
    headers = {
        micro.ERROR_CODE: {"type": "string", "const": str(schema.ERRORS[code])},
        micro.ERROR_TEXT: _text("the error message as one line of ASCII"),
        "Content-Type": _CONTENT_TYPE,
    }
    code_is = {"properties": {"error": {"properties": {"code": {"const": code}}}}}
    return {
        "name": code,
        "headers": _object(headers, *headers),
        "payload": {"allOf": [_schema(requests.ErrorReply), code_is]},
    }


def _jetstream() -> Document:
    """The streams and buckets that a manager with default settings creates; times in nanoseconds, as in NATS."""
    settings = Settings()
    values = {settings.sessions_bucket: "SessionRecord", settings.managers_bucket: "ManagerInfo"}
    configs = {config["name"]: config for config in topology.stream_configs(settings)}
    buckets: Document = {
        name: {"value": {"$ref": f"#/components/schemas/{kind}"}, "stream": configs.pop(subjects.bucket_stream(name))}
        for name, kind in values.items()
    }
    buckets[settings.sessions_bucket]["key"] = "session id"
    buckets[settings.managers_bucket]["key"] = "manager id"
    configs[settings.journal_stream] = topology.journal_config(settings)
    return {"streams": configs, "buckets": buckets}


def _errors(command: Command) -> list[str]:
    codes = {kind.code for kind in command.errors + ERRORS_OF_EVERY_COMMAND}
    return [code for code in schema.ERRORS if code in codes]


def _request_name(verb: str) -> str:
    return f"{verb}_request"


def _reply_name(verb: str) -> str:
    return f"{verb}_reply"


def _error_name(code: str) -> str:
    return f"error_{code}"


def _address(subject: str, parameter: str = "session_id") -> str:
    return subject.replace("*", f"{{{parameter}}}")


def _channel(name: str) -> Document:
    return {"$ref": f"#/channels/{name}"}


def _references(names: Any) -> Document:
    return {name: {"$ref": f"#/components/messages/{name}"} for name in names}


def _schema(kind: type[Any]) -> Document:
    return {"$ref": f"#/components/schemas/{kind.__name__}"}


def _object(properties: Document, *required: str) -> Document:
    return {"type": "object", "properties": properties, "required": list(required)}


def _text(description: str, **rules: Any) -> Document:
    return {"type": "string", "description": description, **rules}


_INT: Final = "^[0-9]+$"
_TRACEPARENT: Final = {"type": "string", "description": "the W3C Trace Context of the command that caused it"}
_CONTENT_TYPE: Final = {"type": "string", "enum": [encoding.content_type for encoding in Encoding]}
_ID_PARAMETER: Final = {"description": "1 to 64 letters, digits, '_' or '-'"}
_SESSION_PARAMETER: Final = {"session_id": _ID_PARAMETER}
