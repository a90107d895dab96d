"""THE table of MCP methods: what each one is, who answers it, and where the name or URI in it sits.

Deny by default rests on it: a method that is not here does not exist, exactly as it is spelt.
Source: the JSON Schemas of revisions 2024-11-05 to 2026-07-28 (`ClientRequest`, `ServerRequest`, notifications).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from msgspec import Struct

from mcpmux.protocol.events import Offered


class Answers(StrEnum):
    """Who answers a request of a client."""

    US = "us"  # mcpmux itself, nothing goes upstream
    LIST = "list"  # from what the servers offer
    SERVER = "server"  # the one server that the name or URI leads to
    INTEREST = "interest"  # mcpmux, counting who wants to hear what
    TASK = "task"  # the one server that has the task


class Subject(StrEnum):
    """What a request is about, and so what is decided on."""

    TOOL = "tool"
    PROMPT = "prompt"
    RESOURCE = "resource"
    REFERENCE = "reference"  # completion/complete: a prompt or a resource template


class Method(Struct, frozen=True):
    """One request of a client.

    `member` is where the name or URI sits in params; `offers` which list it is, for lists; `capability` what a server
    must have announced to be asked.
    """

    name: str
    answers: Answers
    subject: Subject | None = None
    member: str | None = None
    offers: Offered | None = None
    capability: str | None = None


_REQUESTS: Final = (
    Method("initialize", Answers.US),
    Method("ping", Answers.US),
    Method("logging/setLevel", Answers.US),
    Method("tools/list", Answers.LIST, offers=Offered.TOOLS, capability="tools"),
    Method("tools/call", Answers.SERVER, Subject.TOOL, "name", capability="tools"),
    Method("prompts/list", Answers.LIST, offers=Offered.PROMPTS, capability="prompts"),
    Method("prompts/get", Answers.SERVER, Subject.PROMPT, "name", capability="prompts"),
    Method("resources/list", Answers.LIST, offers=Offered.RESOURCES, capability="resources"),
    Method("resources/templates/list", Answers.LIST, offers=Offered.TEMPLATES, capability="resources"),
    Method("resources/read", Answers.SERVER, Subject.RESOURCE, "uri", capability="resources"),
    Method("resources/subscribe", Answers.INTEREST, Subject.RESOURCE, "uri", capability="resources"),
    Method("resources/unsubscribe", Answers.INTEREST, Subject.RESOURCE, "uri", capability="resources"),
    Method("completion/complete", Answers.SERVER, Subject.REFERENCE, "ref", capability="completions"),
)

REQUESTS: Final[dict[str, Method]] = {method.name: method for method in _REQUESTS}

# Tasks: an experiment of 2025-11-25, and an extension of the modern era. `tasks/list` does not exist here: see
# ARCHITECTURE.md, "Decisions".
TASK_RESULT: Final = "tasks/result"
TASK_UPDATE: Final = "tasks/update"
TASK_GET: Final = "tasks/get"
TASK_CANCEL: Final = "tasks/cancel"
_GET, _CANCEL, _RESULT, _UPDATE = (
    Method(name, Answers.TASK, Subject.TOOL, "taskId", capability="tasks")
    for name in (TASK_GET, TASK_CANCEL, TASK_RESULT, TASK_UPDATE)
)
# Between our own rooms, on no wire: somebody wants to hear of a task of the modern era, or nobody does any more.
TASK_SUBSCRIBE: Final = Method("tasks/subscribe", Answers.TASK, Subject.TOOL, "taskId", capability="tasks")
TASK_UNSUBSCRIBE: Final = "tasks/unsubscribe"
TASK_REQUESTS: Final[dict[str, Method]] = {method.name: method for method in (_GET, _CANCEL, _RESULT)}

# What the modern era brought, and what it took away.
DISCOVER: Final = "server/discover"
LISTEN: Final = "subscriptions/listen"
_BROUGHT: Final = (Method(DISCOVER, Answers.US), Method(LISTEN, Answers.INTEREST))
_TAKEN: Final = frozenset({"initialize", "ping", "logging/setLevel", "resources/subscribe", "resources/unsubscribe"})

MODERN_REQUESTS: Final[dict[str, Method]] = {
    method.name: method for method in (*_REQUESTS, *_BROUGHT, _GET, _CANCEL, _UPDATE) if method.name not in _TAKEN
}
EVERY_REQUEST: Final = frozenset(REQUESTS | TASK_REQUESTS | MODERN_REQUESTS)

INITIALIZED: Final = "notifications/initialized"
CANCELLED: Final = "notifications/cancelled"
PROGRESS: Final = "notifications/progress"
MESSAGE: Final = "notifications/message"
RESOURCE_UPDATED: Final = "notifications/resources/updated"
ACKNOWLEDGED: Final = "notifications/subscriptions/acknowledged"
ELICITATION_COMPLETE: Final = "notifications/elicitation/complete"
ROOTS_CHANGED: Final = "notifications/roots/list_changed"
TASK_STATUS: Final = "notifications/tasks/status"
TASK_NEWS: Final = "notifications/tasks"  # the same in the modern era, with all that `tasks/get` would say

# What a client may send without wanting an answer.
CLIENT_NOTIFICATIONS: Final = frozenset({INITIALIZED, CANCELLED, PROGRESS, ROOTS_CHANGED})

# What a server asks of a client.
ELICITATION: Final = "elicitation/create"
SAMPLING: Final = "sampling/createMessage"
ROOTS: Final = "roots/list"
SERVER_REQUESTS: Final = frozenset({"ping", SAMPLING, ELICITATION, ROOTS})

# Which list a `list_changed` is about, and which notification says that a list changed.
LIST_CHANGED: Final[dict[str, tuple[Offered, ...]]] = {
    "notifications/tools/list_changed": (Offered.TOOLS,),
    "notifications/resources/list_changed": (Offered.RESOURCES, Offered.TEMPLATES),
    "notifications/prompts/list_changed": (Offered.PROMPTS,),
}
CHANGED_BY: Final[dict[Offered, str]] = {
    what: notification for notification, lists in LIST_CHANGED.items() for what in lists
}

# The member of a list's result that holds its items, and the method that asks for it.
ITEMS: Final[dict[Offered, str]] = {
    Offered.TOOLS: "tools",
    Offered.RESOURCES: "resources",
    Offered.TEMPLATES: "resourceTemplates",
    Offered.PROMPTS: "prompts",
}
LISTS: Final[dict[Offered, Method]] = {method.offers: method for method in _REQUESTS if method.offers is not None}

LOG_LEVELS: Final = ("debug", "info", "notice", "warning", "error", "critical", "alert", "emergency")
