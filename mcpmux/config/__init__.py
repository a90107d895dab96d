"""The config file: read whole, checked whole, watched.

Owns `servers.yaml`, the environment and every `${file:…}` named in it: no other room opens or reads them. What comes
out is a `Snapshot`, or `ConfigInvalid` with every problem at its line and column. `load.load()` reads once,
`live.Live` goes on reading, `describe.json_schema()` is for editors.
"""

from __future__ import annotations

from mcpmux.config.schema import Gateway as Gateway
from mcpmux.config.schema import Server as Server
from mcpmux.config.schema import Snapshot as Snapshot

__all__ = ["Gateway", "Server", "Snapshot"]
