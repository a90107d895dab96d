"""Our half of the protocol towards servers, without I/O: one core for each era behind the same door."""

from mcpmux.protocol.upstream.core import Core as Core
from mcpmux.protocol.upstream.legacy import LinkCore as LinkCore
from mcpmux.protocol.upstream.modern import ModernCore as ModernCore
from mcpmux.protocol.upstream.probe import ProbeCore as ProbeCore
from mcpmux.protocol.upstream.received import Greeting as Greeting

__all__ = ["Core", "Greeting", "LinkCore", "ModernCore", "ProbeCore"]
