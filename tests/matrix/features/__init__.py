"""What a client and a server can do together: one feature after the other, each asked of every pair in the matrix.

The rows are in the order of `MODULES`; `whole` is last, because it looks at all that was said before.
"""

from __future__ import annotations

from typing import Final

from tests.matrix.features import asks, eras, news, offers, passing, tools, whole
from tests.matrix.features.meeting import KNOWN, Feature, Meeting, text

__all__ = ["FEATURES", "Feature", "Meeting", "text"]

MODULES: Final = (tools, offers, news, asks, passing, eras, whole)
FEATURES: Final = tuple(one for module in MODULES for one in KNOWN if one.works.__module__ == module.__name__)
