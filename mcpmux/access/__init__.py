"""What a principal may do: grants, read from PostgreSQL and kept, and the one decision over them.

Owns the four grant tables. Who somebody is, is `identity`'s; what exists is `catalog`'s; what a refusal looks like to
the caller is `calls`'.
"""

from mcpmux.access.decision import Decision as Decision
from mcpmux.access.decision import Grant as Grant
from mcpmux.access.decision import GrantSet as GrantSet
from mcpmux.access.decision import Level as Level
from mcpmux.access.decision import Target as Target
from mcpmux.access.decision import decide as decide
from mcpmux.access.grants import Grants as Grants

__all__ = ["Decision", "Grant", "GrantSet", "Grants", "Level", "Target", "decide"]
