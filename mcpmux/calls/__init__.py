"""The middle: one request on its way from a client to the one server that answers it, and back.

Owns: resolving names, deciding, deadlines, lists, what we answer ourselves, who wants to hear what, what servers ask of
clients, tasks, and the one record of each call. Knows neither HTTP nor how a link works.
"""

from mcpmux.calls.call import Call, Caller
from mcpmux.calls.inputs import Inputs
from mcpmux.calls.interest import Interest
from mcpmux.calls.lists import Lists
from mcpmux.calls.parked import Parking
from mcpmux.calls.router import Router
from mcpmux.calls.tasks import Tasks, Told

__all__ = ["Call", "Caller", "Inputs", "Interest", "Lists", "Parking", "Router", "Tasks", "Told"]
