"""Prometheus' own checker: from PATH, else out of Debian's package, without installing (and starting) its server."""

from __future__ import annotations

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from tempfile import mkdtemp


@cache
def promtool() -> Path | None:
    """Where `promtool` is; None when it is not to be had here."""
    if (found := shutil.which("promtool")) is not None:
        return Path(found)
    if shutil.which("apt-get") is None or os.geteuid() != 0:
        return None
    folder = Path(mkdtemp(prefix="promtool-"))
    folder.chmod(0o755)  # apt downloads as a user of its own
    commands = (
        ["apt-get", "-qq", "update"],
        ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", "prometheus"],
        ["sh", "-c", "dpkg-deb -x prometheus_*.deb ."],
    )
    for command in commands:
        if subprocess.run(command, cwd=folder, capture_output=True, timeout=300).returncode != 0:
            return None
    found = folder / "usr/bin/promtool"
    works = subprocess.run([found, "--version"], capture_output=True).returncode == 0
    return found if works else None
