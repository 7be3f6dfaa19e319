"""The AsyncAPI 3.0 document of the mesh, made from the subjects, the streams and the messages.

AsyncAPI describes one application; a mesh has three kinds (agents, orchestrators, clients). The operations' names begin
with the kind that performs them. Streams and consumers, for which the NATS binding has no words, are in
`x-jetstream-…`.
"""

from dataclasses import asdict
from typing import Any

from protocol import subjects
from protocol.discovery import KV_BUCKET, REFRESH_SECONDS, TTL_SECONDS, InstanceRecord
from protocol.events import EVENTS
from protocol.fields import UUID_SHAPE
from protocol.names import AGENT_NAME, ORCHESTRATOR
from protocol.schema import DIALECT, MODELS, Document, error_codes, event_data, model_schemas
from protocol.streams import (
    ALL_STREAMS,
    DEAD_LETTERS,
    RESPONSES,
    TASKS,
    StreamSpec,
    task_consumer,
)
from protocol.streams import (
    EVENTS as EVENTS_STREAM,
)

SCHEMA_FORMAT = "application/schema+json;version=draft-2020-12"
_QUERY_QUEUE = "orchestrators"

_STRING: Document = {"type": "string"}
_UUID: Document = {"type": "string", "format": "uuid", "pattern": UUID_SHAPE}
_AGENT_PARAMETER: Document = {"description": f"The agent's name: {AGENT_NAME.pattern.replace(chr(92) + 'Z', '$')}"}

_HEADERS: dict[str, Document] = {
    "Nats-Msg-Id": {"type": "string", "description": "`<task_id>:<attempt>`; stops duplicates within 2 minutes"},
    "Nats-TTL": {"type": "string", "description": "what is left of the attempt's time, as in `299s`"},
    "traceparent": {"type": "string", "description": "W3C Trace Context"},
    "tracestate": {"type": "string", "description": "W3C Trace Context"},
}

# Ready rows that are held up by the same reason; beside the ids and the sentence, the details of `no_agent_available`.
_WAITING: Document = {
    "type": "object",
    "properties": {
        "task_ids": {"type": "array", "items": _UUID},
        "reason": _STRING,
        "task_type": _STRING,
        "task": {**_STRING, "description": "what holds up the task, whatever agent it might go to"},
        "instances": {"type": "integer", "description": "how many serve the task type"},
        "agents": {"type": "object", "additionalProperties": _STRING, "description": "what speaks against each"},
        "more": {"type": "integer", "description": "agents that are not in `agents`"},
    },
    "required": ["task_ids", "reason", "task_type", "instances", "agents"],
}
_PAUSED: Document = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["task", "workflow", "agent"]},
        "name": {**_STRING, "description": "a task's is its id"},
        "task_type": {**_STRING, "description": "of a task"},
        "paused_at": {**_STRING, "format": "date-time"},
        "paused_by": {**_UUID, "description": "the operation"},
        "requester": {**_STRING, "description": "who sent the operation"},
        "waiting": {"type": "integer", "description": "tasks that are ready and wait; counted up to 10,000"},
    },
    "required": ["kind", "name", "waiting"],
}
# Query -> (what it returns, its arguments, its reply).
_QUERIES: dict[str, tuple[str, Document, Document]] = {
    "tasks": (
        "Root tasks, newest first, without payloads and results.",
        {
            "properties": {
                "status": {"anyOf": [_STRING, {"type": "array", "items": _STRING}, {"type": "null"}]},
                "task_type": {"type": ["string", "null"]},
                "requester": {"type": ["string", "null"]},
                "session_id": {"type": ["string", "null"]},
                "limit": {"type": "integer", "minimum": 1, "maximum": 1000, "default": 50},
            }
        },
        {"properties": {"tasks": {"type": "array", "items": {"type": "object"}}}, "required": ["tasks"]},
    ),
    "task": (
        "Every task of the tree that a task belongs to, as it is kept.",
        {
            "properties": {
                "task_id": _UUID,
                "brief": {"type": "boolean", "default": False, "description": "without payloads and results"},
                "waiting": {"type": "boolean", "default": False, "description": "why rows that are ready wait"},
            },
            "required": ["task_id"],
        },
        {
            "properties": {
                "tasks": {"type": "array", "items": {"type": "object"}},
                "waiting": {"type": "array", "items": _WAITING},
            },
            "required": ["tasks"],
        },
    ),
    "response": (
        "A root task's status, and its final response once it has ended.",
        {"properties": {"task_id": _UUID}, "required": ["task_id"]},
        {
            "properties": {
                "status": _STRING,
                "response": {"anyOf": [{"$ref": "#/components/schemas/TaskResponse/schema"}, {"type": "null"}]},
            },
            "required": ["status", "response"],
        },
    ),
    "workflows": (
        "The workflows that the orchestrator knows.",
        {},
        {"properties": {"workflows": {"type": "array", "items": {"type": "object"}}}, "required": ["workflows"]},
    ),
    "pauses": (
        "What is paused, newest first.",
        {"properties": {"limit": {"type": "integer", "minimum": 1, "maximum": 1000, "default": 50}}},
        {"properties": {"pauses": {"type": "array", "items": _PAUSED}}, "required": ["pauses"]},
    ),
    "dead_letters": (
        "Dead letters, oldest first; with `id`, one of them with its body.",
        {
            "properties": {
                "id": {"type": ["string", "null"]},
                "name": {"type": ["string", "null"], "description": "an agent's name"},
                "reason": {"type": ["string", "null"], "description": "a text that the letter's reason holds"},
                "limit": {"type": "integer", "minimum": 1, "maximum": 1000, "default": 50},
            }
        },
        {"properties": {"dead_letters": {"type": "array", "items": {"type": "object"}}}, "required": ["dead_letters"]},
    ),
}
# Between orchestrators only; described because a subscriber to the whole mesh receives it.
_PEER_BEAT: Document = {
    "summary": "An orchestrator announces that it runs, or that it accepts nothing from the others.",
    "payload": {
        "schemaFormat": SCHEMA_FORMAT,
        "schema": {
            "type": "object",
            "properties": {
                "process_id": _UUID,
                "there": {"type": "boolean"},
                "crowded": {"type": "array", "items": _STRING, "description": "`task`, `response`: no more of those"},
            },
            "required": ["process_id", "there", "crowded"],
        },
    },
}
_REFUSAL: Document = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message"],
            "properties": {"code": _STRING, "message": _STRING},
        }
    },
}


def _camel(text: str) -> str:
    first, *rest = text.split("_")
    return first + "".join(word.capitalize() for word in rest)


def _formatted(schema: Document) -> Document:
    return {"schemaFormat": SCHEMA_FORMAT, "schema": schema}


def _message(model: str, *, headers: bool = False) -> Document:
    made: Document = {
        "name": model,
        "contentType": "application/json",
        "payload": {"$ref": f"#/components/schemas/{model}"},
    }
    if headers:
        made["headers"] = {"type": "object", "properties": _HEADERS}
    return made


def _event_messages() -> dict[str, Document]:
    messages: dict[str, Document] = {}
    for (entity, name), summary in EVENTS.items():
        narrowed = {
            "allOf": [{"$ref": "#/components/schemas/Event/schema"}],
            "properties": {"type": {"const": f"pantheon.{entity}.{name}"}, "data": event_data(entity, name)},
        }
        messages[_event_key(entity, name)] = {
            "name": f"pantheon.{entity}.{name}",
            "summary": summary,
            "contentType": "application/cloudevents+json",
            "payload": _formatted(narrowed),
        }
    return messages


def _event_key(entity: str, name: str) -> str:
    return f"{_camel(entity)}{name.capitalize()}"


def _query_messages() -> dict[str, Document]:
    messages: dict[str, Document] = {}
    for name, (summary, arguments, reply) in _QUERIES.items():
        messages[f"{name}Query"] = {"summary": summary, "payload": _formatted({"type": "object", **arguments})}
        replied = {"anyOf": [{"type": "object", **reply}, _REFUSAL]}
        messages[f"{name}Answer"] = {"summary": summary, "payload": _formatted(replied)}
    return messages


def _stream(spec: StreamSpec) -> Document:
    return {**asdict(spec), "subjects": list(spec.subjects), "storage": "file"}


def _channel(address: str, messages: list[str], description: str, *, stream: StreamSpec | None = None) -> Document:
    channel: Document = {
        "address": address,
        "description": description,
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages},
    }
    parameters = {}
    if "{agent}" in address:
        parameters["agent"] = _AGENT_PARAMETER
    if "{rootTaskId}" in address:
        parameters["rootTaskId"] = {"description": "The id of the root task: a UUID."}
    if "{processId}" in address:
        parameters["processId"] = {"description": "The id of an orchestrator's process: a UUID."}
    if parameters:
        channel["parameters"] = parameters
    if stream is not None:
        channel["x-jetstream-stream"] = stream.name
    return channel


def _channels() -> dict[str, Document]:
    agent = "{agent}"
    channels = {
        "agentTask": _channel(
            subjects.task(agent), ["TaskRequest"], "Tasks for an agent, the orchestrator included.", stream=TASKS
        ),
        "agentResponse": _channel(
            subjects.response(agent), ["TaskResponse"], "How an agent's tasks ended.", stream=RESPONSES
        ),
        "agentProgress": _channel(
            subjects.progress(agent, "{rootTaskId}"), ["TaskProgress"], "How far a task is. Core NATS: may be lost."
        ),
        "agentHeartbeat": _channel(
            subjects.heartbeat(agent), ["Heartbeat"], "Each instance, every 5 s. Core NATS: may be lost."
        ),
        "agentControl": _channel(
            subjects.control(agent), ["Control"], "Orders to an agent's instances. Core NATS: may be lost, is repeated."
        ),
        "deadLetter": _channel(
            subjects.dead_letter(agent),
            ["DeadLetter"],
            "What an agent could not use, kept whole.",
            stream=DEAD_LETTERS,
        ),
        "peerBeat": _channel(
            subjects.PEER_BEAT, ["PeerBeat"], "Between orchestrators, four times a second. No part of the contract."
        ),
        "peerTask": _channel(
            f"{subjects.peer('{processId}')}.{subjects.task(ORCHESTRATOR)}",
            ["TaskRequest"],
            "A request that one orchestrator forwards to another. No part of the contract.",
        ),
        "peerResponse": _channel(
            f"{subjects.peer('{processId}')}.{subjects.response(agent)}",
            ["TaskResponse"],
            "A response that one orchestrator forwards to another. No part of the contract.",
        ),
    }
    # The first instance of an agent makes the consumer that all of them share, with exactly these values.
    channels["agentTask"]["x-jetstream-consumer"] = {**asdict(task_consumer(agent)), "ack_policy": "explicit"}
    kept = {subject.split(".")[2] for subject in EVENTS_STREAM.subjects}
    for entity, name in EVENTS:
        key = _event_key(entity, name)
        channels[f"{key}Event"] = _channel(
            subjects.event(entity, name), [key], EVENTS[entity, name], stream=EVENTS_STREAM if entity in kept else None
        )
    for name, (summary, _, _) in _QUERIES.items():
        channels[f"{name}Query"] = _channel(subjects.query(name), [f"{name}Query"], summary)
        channels[f"{name}Answer"] = {
            "address": None,
            "description": "The reply subject of the request.",
            "messages": {f"{name}Answer": {"$ref": f"#/components/messages/{name}Answer"}},
        }
    return channels


def _operation(action: str, channel: str, summary: str) -> Document:
    return {"action": action, "channel": {"$ref": f"#/channels/{channel}"}, "summary": summary}


def _operations() -> dict[str, Document]:
    operations = {
        "clientSendsRequest": _operation(
            "send", "agentTask", "A client asks agent `orchestrator_agent` for a root task."
        ),
        "clientReceivesResponse": _operation(
            "receive", "agentResponse", "A client reads along on `agent.orchestrator_agent.response`."
        ),
        "orchestratorReceivesRequest": _operation(
            "receive", "agentTask", "Root tasks, by the orchestrator's consumer."
        ),
        "orchestratorSendsTask": _operation(
            "send", "agentTask", "One attempt of one step, to the agent chosen for it."
        ),
        "orchestratorReceivesResponse": _operation("receive", "agentResponse", "The responses of all agents."),
        "orchestratorSendsResponse": _operation("send", "agentResponse", "A root task's one final response."),
        "orchestratorSaysItIsThere": _operation("send", "peerBeat", "To the other orchestrators."),
        "orchestratorPassesOnRequest": _operation("send", "peerTask", "To the one that owns the root."),
        "orchestratorPassesOnResponse": _operation("send", "peerResponse", "To the one that owns the root."),
        "orchestratorSendsControl": _operation("send", "agentControl", "Tells an agent to stop an attempt."),
        "agentReceivesTask": _operation("receive", "agentTask", "Pulls from the agent's consumer."),
        "agentSendsResponse": _operation("send", "agentResponse", "Acknowledged by JetStream before the task is."),
        "agentSendsProgress": _operation("send", "agentProgress", "Optional."),
        "agentSendsHeartbeat": _operation("send", "agentHeartbeat", "Optional."),
        "agentReceivesControl": _operation("receive", "agentControl", "Optional."),
        "agentSendsDeadLetter": _operation("send", "deadLetter", "A message without an id to respond to."),
    }
    for entity, name in EVENTS:
        who = "agent" if entity == "agent" else "orchestrator"
        key = _event_key(entity, name)
        operations[f"{who}Says{key[0].upper()}{key[1:]}"] = _operation("send", f"{key}Event", EVENTS[entity, name])
    for name, (summary, _, _) in _QUERIES.items():
        operation = _operation("receive", f"{name}Query", summary)
        operation["bindings"] = {"nats": {"queue": _QUERY_QUEUE}}
        operation["reply"] = {
            "address": {"location": "$message.header#/reply", "description": "The reply subject of the NATS request."},
            "channel": {"$ref": f"#/channels/{name}Answer"},
        }
        operations[f"orchestratorAnswers{name.capitalize()}"] = operation
    return operations


def asyncapi() -> dict[str, Any]:
    """The whole document."""
    models = model_schemas("#/components/schemas/{model}/schema")
    messages = {model.__name__: _message(model.__name__) for model in MODELS.values() if model.__name__ in _ON_THE_WIRE}
    messages["TaskRequest"] = _message("TaskRequest", headers=True)
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Pantheon mesh",
            "version": "1",
            "description": (
                "The wire contract of the mesh, version 1: what passes between clients, orchestrators and agents. "
                "The name of an operation begins with the kind that performs it."
            ),
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": {"nats": {"host": "127.0.0.1:4222", "protocol": "nats", "description": "NATS 2.12 or newer."}},
        "channels": _channels(),
        "operations": _operations(),
        "components": {
            "messages": {**messages, "PeerBeat": _PEER_BEAT, **_event_messages(), **_query_messages()},
            "schemas": {
                **{name: _formatted(schema) for name, schema in models.items()},
                "ErrorCode": _formatted(error_codes()),
            },
        },
        "x-json-schema-dialect": DIALECT,
        "x-jetstream-streams": {spec.name: _stream(spec) for spec in ALL_STREAMS},
        "x-nats-kv": {
            KV_BUCKET: {
                "ttl_seconds": TTL_SECONDS,
                "refresh_seconds": REFRESH_SECONDS,
                "key": "<name>.<instance_id>",
                "value": {"$ref": f"#/components/schemas/{InstanceRecord.__name__}"},
            }
        },
    }


# Models that are messages by themselves; the others are values, files and payloads.
_ON_THE_WIRE = frozenset({"TaskRequest", "TaskResponse", "TaskProgress", "Heartbeat", "Control", "DeadLetter"})
