"""Live connections to servers: each one supervised, shared by its `LinkKey`, and gone without a trace when it ends.

Owns processes, pipes and HTTP sessions towards servers, and what a call on one of them looks like (`Exchange`). It
never learns who calls: an `Opening` carries an opaque word for the caller, and that only to keep callers apart.
"""

from mcpmux.links.exchange import Exchange as Exchange
from mcpmux.links.link import Link as Link
from mcpmux.links.pool import Pool as Pool
from mcpmux.links.surroundings import Surroundings as Surroundings

__all__ = ["Exchange", "Link", "Pool", "Surroundings"]
