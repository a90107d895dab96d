"""The side of MCP clients, where mcpmux is the server."""

from mcpmux.protocol.downstream.legacy import Admission, SessionCore

__all__ = ["Admission", "SessionCore"]
