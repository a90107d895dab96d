"""MCP and JSON-RPC without I/O: bytes and values in, events and bytes out; time, ids and randomness are arguments."""
