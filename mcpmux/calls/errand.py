"""Errand: what one call has to do with a task, and the ids that are exchanged in everything that passes.

Which id stands for which, and what there is of tasks, is `tasks.py`'s.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec import Raw, Struct

from mcpmux.config.schema import Server
from mcpmux.links.exchange import Exchange
from mcpmux.links.link import Link
from mcpmux.protocol import envelope, faults, tasks
from mcpmux.protocol.events import Ask, End, Event, Failure, Log, Progress, Result, TaskMade
from mcpmux.protocol.methods import TASK_RESULT, TASK_SUBSCRIBE
from mcpmux.protocol.revisions import MODERN

if TYPE_CHECKING:
    from mcpmux.calls.call import Caller
    from mcpmux.calls.tasks import Tasks

RESULT_WAIT: Final = 3600.0  # seconds that a request for a result may wait

_ANSWERED: Final = ("ok", "tool_error", "rpc_error", "input_required")
_UNUSABLE: Final = Failure(faults.INTERNAL_ERROR, "The server sent an answer that could not be used.")


def is_modern(link: Link) -> bool:
    """Whether the server has tasks as the extension has them, if it has any."""
    return link.greeting is not None and link.greeting.protocol_version == MODERN


class Errand(Struct, frozen=True):
    """What one call has to do with a task: ids are exchanged in everything that passes, both ways.

    `task` is the server's id and `sealed` the client's; both are empty while the task is yet to be made. `token` is the
    client's own, for the progress of a task that is made.
    """

    of: Tasks
    caller: Caller
    server: Server
    tool: str
    method: str
    task: str = ""
    sealed: str = ""
    token: int | str | None = None

    def shown(self, event: Event, exchange: Exchange) -> Event:
        """An event of the call as its client gets it."""
        match event:
            case Result(raw):
                return self._answered(raw, exchange.link)
            case Ask(id_, method, params, key):
                return Ask(id_, method, tasks.remarked(params, self.sealed), key) if self.sealed else event
            case Progress(params) if self.sealed:
                return Progress(tasks.remarked(params, self.sealed) or params)
            case Log(level, raw) if self.sealed:
                return Log(level, tasks.remarked_raw(raw, self.sealed))
        return event

    def answer(self, end: End) -> End:
        """What a client answered to what it was asked, as the server gets it."""
        return Result(tasks.remarked_raw(end.result, self.task)) if isinstance(end, Result) and self.task else end

    def over(self, outcome: str, exchange: Exchange) -> None:
        """The call has ended. Given up before its task had an id, it may have left one at work all the same."""
        if self.method == TASK_SUBSCRIBE.name and outcome != "ok":
            self.of.news.remove(self.caller.session, exchange.link.key, self.task)
        if not self.task and outcome not in _ANSWERED:
            exchange.link.outlasts(f"call {exchange.id}", self.caller.principal.key, RESULT_WAIT)

    def _answered(self, raw: Raw, link: Link) -> End:
        if not self.task and not self.caller.revision:
            return self._turned(raw, link) if is_modern(link) else self._crossed(raw, link)
        if not self.task:
            made = tasks.made(raw)
            return Result(raw if made is None else tasks.renamed_made(raw, self.of.begun(self, link, made)))
        if self.method == TASK_RESULT:
            self.of.ended(link, self.task)
            marked = tasks.marked(raw, self.sealed)
            return _UNUSABLE if marked is None else Result(marked)
        standing = tasks.standing(raw)
        if standing is None:
            # In the modern era only `tasks/get` shows the task, the others say that they were heard.
            return _UNUSABLE if self.caller.revision or self.method == "tasks/get" else Result(raw)
        if standing.ended:
            self.of.ended(link, self.task)
        return Result(tasks.renamed(raw, self.sealed))

    def _crossed(self, raw: Raw, link: Link) -> End:
        """The result of such a call at a server of 2025-11-25, which was asked for a task."""
        made = tasks.made(raw)
        return Result(raw) if made is None else TaskMade(tasks.crossed_made(raw, self.of.begun(self, link, made)))

    def _turned(self, raw: Raw, link: Link) -> End:
        """The result of a call of a modern client, which may be a task."""
        found = tasks.turned(raw)
        if found is None:
            return Result(raw)
        made = tasks.standing(found)
        if made is None:
            return _UNUSABLE
        return TaskMade(tasks.renamed(Raw(envelope.encode(found)), self.of.begun(self, link, made)))
