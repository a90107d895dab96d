"""The config file: read whole, checked whole, watched.

Owns `servers.yaml`, the environment and every `${file:…}` named in it: no other room opens or reads them. What comes
out is a `Snapshot`, or `ConfigInvalid` with every problem at its line and column.
"""

from __future__ import annotations

from mcpmux.config.load import config_path as config_path
from mcpmux.config.load import environment as environment
from mcpmux.config.load import load as load
from mcpmux.config.schema import Gateway as Gateway
from mcpmux.config.schema import Overrides as Overrides
from mcpmux.config.schema import Server as Server
from mcpmux.config.schema import Snapshot as Snapshot

__all__ = ["Gateway", "Overrides", "Server", "Snapshot", "config_path", "environment", "load"]
