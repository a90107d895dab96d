"""What all links of one mcpmux share, handed in once by the gateway."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mcpmux.config.schema import Limits
from mcpmux.guardian import Guardian
from mcpmux.observe.metrics import Metrics
from mcpmux.outbound import Outbound


@dataclass(frozen=True, slots=True)
class Surroundings:
    """`environ` is the process's environment as `config` read it: children get an allowed part of it."""

    data_dir: Path
    environ: Mapping[str, str]
    guardian: Guardian
    outbound: Outbound
    metrics: Metrics
    limits: Limits
    version: str = "0"
