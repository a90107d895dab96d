"""npm packages that tests need."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests import cached


def installed(name: str, *packages: str) -> Path:
    """The folder with these packages (`name@version`); installed at the first call that asks for it by `name`."""

    def install(place: Path) -> None:
        command = ["npm", "install", "--no-audit", "--no-fund", "--prefix", place, *packages]
        subprocess.run(command, check=True, timeout=300, stdout=subprocess.DEVNULL)

    return cached.folder(name, install)
