"""The small process that outlives us just long enough to end every child's process group; the registry of groups.

Two programs, two files: `registry.py` runs in mcpmux, `watch.py` is the guardian process itself (standard library
only, no mcpmux imports, so that it starts in milliseconds and has little that can fail).
"""

from mcpmux.guardian.registry import Guardian as Guardian
from mcpmux.guardian.registry import Kind as Kind

__all__ = ["Guardian", "Kind"]
