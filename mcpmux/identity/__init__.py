"""Who is calling: bearer tokens, the issuers that make them, and the principals that they name.

Owns the caller's token until it is verified; no other room sees it. What a principal may do is `access`'s.
"""

from mcpmux.identity.development import DevelopmentIssuer as DevelopmentIssuer
from mcpmux.identity.development import development_issuer as development_issuer
from mcpmux.identity.principal import Principal as Principal
from mcpmux.identity.principal import Verified as Verified
from mcpmux.identity.principal import normal_email as normal_email
from mcpmux.identity.verifier import Verifier as Verifier
from mcpmux.identity.verifier import bearer as bearer

__all__ = ["DevelopmentIssuer", "Principal", "Verified", "Verifier", "bearer", "development_issuer", "normal_email"]
