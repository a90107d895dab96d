"""What the operators see: the log and the metrics.

Owns how lines are written and how numbers are kept; the rooms above say what is worth a line or a number.
"""

from mcpmux.observe.log import Logger as Logger
from mcpmux.observe.log import configure as configure
from mcpmux.observe.log import logger as logger
from mcpmux.observe.metrics import Metrics as Metrics
from mcpmux.observe.redaction import redact as redact

__all__ = ["Logger", "Metrics", "configure", "logger", "redact"]
