"""The faces' edge: where what nobody foresaw becomes "Internal error" and a request id, and the log has its trace."""

from __future__ import annotations

from mcpmux.calls import Call, Router
from mcpmux.errors import CallCancelled
from mcpmux.observe.log import logger
from mcpmux.protocol.events import Event


async def opened(router: Router, call: Call) -> None:
    """Open the call; whatever goes wrong on the way ends it."""
    try:
        await router.open(call)
    except Exception as error:  # noqa: BLE001 (this is the edge)
        _failed(call, error)


async def next_event(call: Call) -> Event:
    """The next event of the call; whatever goes wrong on the way ends it.

    Raises: CallCancelled.
    """
    try:
        return await call.next()
    except CallCancelled:
        raise
    except Exception as error:  # noqa: BLE001 (this is the edge)
        _failed(call, error)
        return await call.next()


async def first_event(router: Router, call: Call) -> Event:
    """Open the call and give its first event; whatever goes wrong on the way ends it.

    Raises: CallCancelled.
    """
    try:
        await router.open(call)
        return await call.next()
    except CallCancelled:
        raise
    except Exception as error:  # noqa: BLE001 (this is the edge)
        _failed(call, error)
        return await call.next()


def _failed(call: Call, error: Exception) -> None:
    logger("faces").exception("call_failed", method=call.admission.method.name, request_id=call.request_id)
    call.fail(error)
