"""PyPI packages that tests need beside our own, such as an older SDK: in an environment of their own."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import uv

from tests import cached


def python(name: str, *packages: str) -> Path:
    """A Python that has these packages (`name==version`); installed at the first call that asks for it by `name`."""

    def install(place: Path) -> None:
        program = uv.find_uv_bin()
        # Relocatable: it is made under another name than the one it is used by.
        new = [program, "venv", "--quiet", "--relocatable", "--allow-existing", "--python", sys.executable, place]
        subprocess.run(new, check=True, timeout=60)
        into = [program, "pip", "install", "--quiet", "--python", place / "bin" / "python", *packages]
        subprocess.run(into, check=True, timeout=300)

    return cached.folder(f"{name}-python{platform.python_version()}", install) / "bin" / "python"
