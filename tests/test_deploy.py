"""The deployment files, judged by the programs that will read them."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"


def judged(*command: str) -> str:
    """What the program says of a file that it accepts."""
    found = shutil.which(command[0])
    assert found, f"{command[0]} is needed for this test (.ci/run installs it)"
    done = subprocess.run([found, *command[1:]], cwd=DEPLOY, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_systemd_finds_nothing_wrong_with_the_unit() -> None:
    assert judged("systemd-analyze", "verify", "./mcpmux.service").strip() == ""


def test_the_unit_is_hardened() -> None:
    said = judged("systemd-analyze", "security", "--offline=true", "--no-pager", "./mcpmux.service")
    level = re.search(r"Overall exposure level for mcpmux.service: ([0-9.]+)", said)
    assert level is not None
    assert float(level[1]) < 2.0


def test_systemd_waits_longer_than_mcpmux_may_drain() -> None:
    unit = (DEPLOY / "mcpmux.service").read_text()
    stop = re.search(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)
    assert stop is not None
    drain, answers, links = 20, 5, 10
    assert int(stop[1]) >= drain + answers + links


def test_prometheus_accepts_the_scrape_configuration_and_the_alerts() -> None:
    assert "SUCCESS" in judged("promtool", "check", "config", "prometheus.yml")
    assert "SUCCESS" in judged("promtool", "check", "rules", "mcpmux-alerts.yml")


def test_every_metric_of_an_alert_is_one_of_ours() -> None:
    source = "".join(path.read_text() for path in (ROOT / "mcpmux" / "observe").glob("*.py"))
    for metric in set(re.findall(r"\bmcpmux_[a-z_]+", (DEPLOY / "mcpmux-alerts.yml").read_text())):
        assert f'"{metric.removesuffix("_total")}"' in source, metric


@pytest.mark.parametrize("line", ["USER mcpmux", 'ENTRYPOINT ["tini", "--", "mcpmux"]', "STOPSIGNAL SIGTERM"])
def test_the_container_runs_unprivileged_below_an_init(line: str) -> None:
    assert line in (DEPLOY / "Containerfile").read_text().splitlines()


def test_the_container_copies_what_the_package_is_built_from() -> None:
    copied = (DEPLOY / "Containerfile").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for name in ("pyproject.toml", "LICENSE", project["readme"], "mcpmux", "config/servers.yaml"):
        assert re.search(rf"^COPY .*{re.escape(name)}", copied, re.MULTILINE), name
        assert (ROOT / name).exists(), name
