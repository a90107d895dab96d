"""The neutral words between a face and a link, whatever era and transport each of them speaks.

`Opening` goes up to a server; `Progress`, `Log`, `Ask`, `Withdrawn`, `Result` and `Failure` come down to the call, and
a `Result` or `Failure` goes up as the answer to an `Ask`; `Changed`, `Updated`, `TaskTold`, `TaskProgressed` and
`TaskUnheard` belong to no call, `Completed` to one or none. Payloads that no decision reads stay `Raw`: the bytes they
came in.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from msgspec import Raw, Struct

from mcpmux.protocol.page import Page

NO_CAPABILITIES: Final[Mapping[str, Raw]] = MappingProxyType({})
"""Of a client of whom nothing is known: it can be asked nothing."""


class Opening(Struct, frozen=True, gc=False):
    """What begins a call on a link.

    `params` is one flat dict of raw members (None: the request has no params); `_meta` in it never holds a progress
    token, the link puts its own in when `wants_progress`. `caller` is an opaque word that is equal for two calls of
    one principal in one scope and nothing else: a link learns that callers differ, never who they are. `task` is the
    task that the call is about, as its server names it. `awaits`: whoever calls gets no task, so should the server make
    one the link waits for its result.

    The rest is said by each request of the modern era, and by no other: what the client of this call can be asked
    (`client`), from which level on it wants log messages (None: none), and `mirrored`, the `Mcp-Param-*` headers that
    the tool wants. `resumes`: the caller understands an `input_required` result itself; otherwise the link makes asks
    of it.
    """

    method: str
    params: dict[str, Raw] | None
    caller: str
    wants_progress: bool = False
    task: str = ""
    client: Mapping[str, Raw] = NO_CAPABILITIES
    log_level: str | None = None
    resumes: bool = False
    mirrored: Mapping[str, str] | None = None
    awaits: bool = False


class Progress(Struct, frozen=True, gc=False):
    """`notifications/progress` of this call; `params` without the progress token."""

    params: dict[str, Raw]


class Log(Struct, frozen=True, gc=False):
    """`notifications/message` that belongs to this call for certain."""

    level: str
    params: Raw


class Ask(Struct, frozen=True, gc=False):
    """The server asks the client of this call (elicitation, sampling, roots); answered by `Exchange.answer(id, …)`.

    `id` is a number of ours, unique on its link; `params` without what we do not pass on (see `upstream/asks.py`);
    `key` the name that a server of the modern era gives to what it asks.
    """

    id: int
    method: str
    params: dict[str, Raw] | None
    key: str | None = None


class Withdrawn(Struct, frozen=True, gc=False):
    """Nobody waits for the answer to this `Ask` any more: the server took it back, or we answered it ourselves."""

    ask: int


class Completed(Struct, frozen=True, gc=False):
    """What a person had to do at a URL is done (`notifications/elicitation/complete`).

    It comes down to a call while the one that asked is in flight; otherwise it belongs to none.
    """

    elicitation: str
    params: dict[str, Raw]


class TaskTold(Struct, frozen=True, gc=False):
    """How a task stands (`notifications/tasks/status`, or `notifications/tasks` in the modern era).

    `task` and `params` as the server has them.
    """

    task: str
    params: dict[str, Raw]


class TaskProgressed(Struct, frozen=True, gc=False):
    """`notifications/progress` of a call that was answered with this task; `params` without the progress token."""

    task: str
    params: dict[str, Raw]


class TaskUnheard(Struct, frozen=True, gc=False):
    """News of this task may have been missed, and is not heard any more unless it is subscribed anew."""

    task: str


class Result(Struct, frozen=True, gc=False):
    """The call succeeded; `result` is the server's own bytes. `page` is the part of it that other answers have too."""

    result: Raw
    page: Page | None = None


class TaskMade(Result, frozen=True, gc=False):
    """The call of a modern client has become a task; `result` is that, without `resultType`."""


class InputRequired(Result, frozen=True, gc=False):
    """What the client of a modern request is asked before it makes the request again; `result` without `resultType`."""


class Failure(Struct, frozen=True, gc=False):
    """The server answered with a JSON-RPC error, passed on verbatim."""

    code: int
    message: str
    data: Raw | None = None


class Quiet(Struct, frozen=True, gc=False):
    """Nothing has happened for a while: time to open a stream or to keep one alive. Made by the calls table's sweep."""


class Offered(StrEnum):
    """What a server can list."""

    TOOLS = "tools"
    RESOURCES = "resources"
    TEMPLATES = "resource_templates"
    PROMPTS = "prompts"


class Changed(Struct, frozen=True, gc=False):
    """A list of the server changed (`notifications/*/list_changed`)."""

    what: Offered


class Updated(Struct, frozen=True, gc=False):
    """A subscribed resource changed (`notifications/resources/updated`); `uri` as the server knows it."""

    uri: str
    params: Raw


ENDS: Final = (Result, Failure)
"""What ends a call, for `isinstance`."""

End = Result | Failure
Event = Progress | Log | Ask | Withdrawn | Completed | Quiet | Result | Failure
News = Changed | Updated | Completed | TaskTold | TaskProgressed | TaskUnheard
"""What a link says of its server that belongs to no call."""
