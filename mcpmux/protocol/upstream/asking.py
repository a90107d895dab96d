"""Asking: what a modern server wants to know before it goes on, asked of a client as a legacy server would ask.

A server of the modern era asks nobody: it answers `input_required`, and the request is made again with what was asked
for. For a client that does not know this, each question is an `Ask` of its call, and when all are answered the request
goes up once more. A `Round` is one such answer on its way.

Source: MCP 2026-07-28 basic/patterns/mrtr.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from msgspec import Raw, Struct

from mcpmux.errors import InvalidRequest, MalformedMessage
from mcpmux.protocol import abilities, envelope, rounds
from mcpmux.protocol.abilities import Capabilities
from mcpmux.protocol.events import Ask, End, Failure, Opening, Result
from mcpmux.protocol.methods import ELICITATION, SERVER_REQUESTS
from mcpmux.protocol.revisions import MODERN
from mcpmux.protocol.upstream.asks import PER_CALL, passed_on

ROUNDS: Final = 16  # of one call; who asks more often is not answered any more

INTERNAL_ERROR: Final = -32603
_DISMISSED: Final = Raw(b'{"action":"cancel"}')
_TASKS: Final = b'"io.modelcontextprotocol/tasks"'


class Round(Struct):
    """What one answer asked: by our number the server's key and the method; what was answered; the server's state."""

    open: dict[int, tuple[str, str]]
    answers: dict[str, Raw]
    state: Raw | None

    def answer(self, number: int, answer: End) -> Failure | None:
        """Take an answer; what the call fails with if the server cannot be told this one."""
        key, method = self.open.pop(number)
        if isinstance(answer, Result):
            self.answers[key] = answer.result
        elif method == ELICITATION:
            self.answers[key] = _DISMISSED  # nobody chose anything, and that can be said
        else:
            text = f"The server needs an answer to {method}, and the client gave none: {answer.message}"
            return Failure(INTERNAL_ERROR, text, answer.data)
        return None

    def params(self, former: Mapping[str, Raw] | None) -> dict[str, Raw]:
        """The params of the request that goes up once more."""
        found = {k: raw for k, raw in (former or {}).items() if k not in (rounds.RESPONSES, rounds.STATE)}
        if self.answers:
            found[rounds.RESPONSES] = Raw(envelope.encode(self.answers))
        if self.state is not None:
            found[rounds.STATE] = self.state
        return found


def begin(found: Mapping[str, Raw], opening: Opening, last: int) -> tuple[Round, list[Ask]]:
    """The round that these members of a result ask for, and its asks, numbered after `last`.

    Raises: InvalidRequest with what is wrong with it, MalformedMessage.
    """
    if opening.method not in rounds.METHODS:
        raise InvalidRequest(f"it asks for input in {opening.method}")
    questions = rounds.questions(found)
    if len(questions) > PER_CALL:
        raise InvalidRequest("it asks too much at once")
    asks = []
    for number, (key, question) in enumerate(questions.items(), last + 1):
        problem = _problem(question.method, question.params, opening.client)
        if problem is not None:
            raise InvalidRequest(problem)
        asks.append(Ask(number, question.method, _older(number, passed_on(question.params)), key))
    keys = {ask.id: (key, ask.method) for key, ask in zip(questions, asks, strict=True)}
    return Round(keys, {}, found.get(rounds.STATE)), asks


def unknown_type(result: Raw, opening: Opening) -> str | None:
    """What is wrong with the type of a result that asks for nothing; None if it is fine."""
    body = bytes(result)
    if b'"resultType"' not in body and b"\\u00" not in body:
        return None  # older ways to answer mean that it is complete
    try:
        found = envelope.members(body)
    except (InvalidRequest, MalformedMessage) as fault:
        return str(fault)
    said = envelope.text(found["resultType"]) if "resultType" in found else "complete"
    knows = bool(opening.task) or _TASKS in bytes(opening.client.get("extensions", b""))
    if said == "complete" or (said == "task" and knows):
        return None
    return f"its resultType {str(said)[:64]} is not known here"


def _older(number: int, params: dict[str, Raw] | None) -> dict[str, Raw] | None:
    """The params as a legacy client must have them: what leads to a URL has an id there."""
    if params is None or envelope.text(params.get("mode")) != "url" or "elicitationId" in params:
        return params
    return {**params, "elicitationId": Raw(envelope.encode(f"input-{number}"))}


def _problem(method: str, params: Mapping[str, Raw] | None, client: Capabilities) -> str | None:
    if method not in SERVER_REQUESTS or method == "ping":
        return f"it asks for {method[:64]}"
    inability = abilities.inability(method, params, client, MODERN)
    return None if inability is None else f"it asks for what was not announced: {inability}"
