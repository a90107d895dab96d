"""Measurements of a whole mcpmux process; see README.md."""
