"""All that listens: the HTTP application with its endpoints, sessions and streams, health, and the control socket.

Owns every socket that others connect to. Translates between a wire and a `Call`; decides nothing about access.
"""

from mcpmux.faces.application import Application
from mcpmux.faces.sessions import Sessions

__all__ = ["Application", "Sessions"]
