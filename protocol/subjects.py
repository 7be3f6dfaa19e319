"""The subjects of the mesh, as plain functions (docs/protocol.md, Subjects and streams)."""

ALL_TASKS = "agent.*.task"
ALL_RESPONSES = "agent.*.response"
ALL_HEARTBEATS = "agent.*.heartbeat"
ALL_EVENTS = "mesh.event.>"
ALL_DEAD_LETTERS = "mesh.deadletter.*"
REPLY_PREFIX = "_INBOX."
# Between orchestrators only: that one runs, and what one forwards to another. Nothing is kept.
PEER_BEAT = "mesh.peer.beat"


def task(agent: str) -> str:
    return f"agent.{agent}.task"


def response(agent: str) -> str:
    return f"agent.{agent}.response"


def progress(agent: str, root_task_id: object) -> str:
    return f"agent.{agent}.progress.{root_task_id}"


def all_progress(root_task_id: object = "*") -> str:
    """Progress of every agent that works on one root task, or on any."""
    return f"agent.*.progress.{root_task_id}"


def heartbeat(agent: str) -> str:
    return f"agent.{agent}.heartbeat"


def control(agent: str) -> str:
    return f"agent.{agent}.control"


def event(entity: str, name: str) -> str:
    return f"mesh.event.{entity}.{name}"


def dead_letter(name: str) -> str:
    return f"mesh.deadletter.{name}"


def query(name: str) -> str:
    """Request-reply reads of the orchestrator's state: any orchestrator replies, nothing is kept."""
    return f"mesh.query.{name}"


def peer(process_id: object) -> str:
    """Other orchestrators forward messages to one below this subject, each with its own subject behind."""
    return f"mesh.peer.{process_id}"


def agent_of(subject: str) -> str:
    """The agent's name in a subject `agent.<name>.…`."""
    return subject.split(".", 2)[1]


def is_reply_subject(subject: str) -> bool:
    """Whether a reply_to is one that the mesh will publish to: below `_INBOX.`, no wildcard, no white space.

    Anything else would let a requester make the mesh publish on subjects of other applications.
    """
    if not subject.startswith(REPLY_PREFIX) or len(subject) > 256:
        return False
    return all(token and token.isprintable() and not set(token) & set("*> \t\r\n") for token in subject.split("."))
