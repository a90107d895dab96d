"""What the servers offer, as an endpoint shows it: which servers, their lists in one order, and what a name leads to.

Owns names and URIs on an aggregate, the lists that servers offer (live, and kept from the last run), and the views of
the endpoints. It does not know who asks: whether somebody may see or use a thing, `access/decision.py` says.
"""

from mcpmux.catalog.offers import Offers as Offers
from mcpmux.catalog.view import Catalog as Catalog
from mcpmux.catalog.view import Found as Found
from mcpmux.catalog.view import View as View

__all__ = ["Catalog", "Found", "Offers", "View"]
