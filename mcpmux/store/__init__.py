"""PostgreSQL, yours or an embedded one: connections, notifications, migrations.

The door: `opened()` gives the `Database` of a data directory, migrated; `migrate()` is for a database already open.
"""

from mcpmux.store.database import Connection as Connection
from mcpmux.store.database import Database as Database
from mcpmux.store.database import Row as Row
from mcpmux.store.embedded import opened as opened
from mcpmux.store.migrate import migrate as migrate

__all__ = ["Connection", "Database", "Row", "migrate", "opened"]
