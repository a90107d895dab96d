"""What tests need from elsewhere: made once on a machine, in the cache folder."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path


def folder(name: str, make: Callable[[Path], None]) -> Path:
    """The folder of this name; at the first call that asks for it `make` fills it. Several may ask at once."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mcpmux-tests"
    place = cache / name
    if not place.exists():
        cache.mkdir(parents=True, exist_ok=True)
        making = Path(tempfile.mkdtemp(dir=cache, prefix="installing-"))
        make(making)
        try:
            making.rename(place)
        except OSError:  # Another run was faster: what it made is as good.
            shutil.rmtree(making)
    return place
