"""npm packages that tests need: installed once on a machine, into the cache folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path


def installed(name: str, *packages: str) -> Path:
    """The folder with these packages (`name@version`); installed at the first call that asks for it by `name`."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mcpmux-tests"
    place = cache / name
    if not place.exists():
        cache.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(dir=cache, prefix="installing-"))
        command = ["npm", "install", "--no-audit", "--no-fund", "--prefix", building, *packages]
        subprocess.run(command, check=True, timeout=300, stdout=subprocess.DEVNULL)
        try:
            building.rename(place)
        except OSError:  # Another run was faster: its installation is as good.
            shutil.rmtree(building)
    return place
