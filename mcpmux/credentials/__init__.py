"""What we show a server to be let in, and whose link that makes: never the caller's own token."""

from mcpmux.credentials.scope import LinkKey as LinkKey
from mcpmux.credentials.scope import link_key as link_key

__all__ = ["LinkKey", "link_key"]
