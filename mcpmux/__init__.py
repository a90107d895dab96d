"""mcpmux: an MCP gateway with per-call authorization."""
