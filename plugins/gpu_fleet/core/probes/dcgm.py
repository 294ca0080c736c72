"""Reads what ``include/probes/dcgm.sh`` wrote into its termination message, strictly; see ``message``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gpu_fleet.core.probes import message as strict
from gpu_fleet.core.probes.message import ProbeError

SCHEMA = "gpu-fleet.io/dcgm/v1"
#: More tests than any level has.
MAX_TESTS = 200


@dataclass(frozen=True)
class Diagnosis:
    """What ``dcgmi diag`` found: names of its tests by result."""

    started_at: float
    finished_at: float
    driver: str
    level: int
    passed: tuple[str, ...]
    failed: tuple[str, ...]
    warned: tuple[str, ...]
    skipped: tuple[str, ...]
    detail: str
    error: ProbeError | None

    def figures(self) -> dict[str, Any]:
        return {"driver": self.driver, "level": self.level}


def parse_dcgm(message: str) -> Diagnosis:
    """The report in a termination message.

    :raises ProbeOutputError: see :func:`gpu_fleet.core.probes.message.read`.
    """
    return strict.read(message, SCHEMA, _diagnosis)


def _diagnosis(value: Mapping[str, Any]) -> Diagnosis:
    started, finished = strict.span(value)
    error = strict.error_of(value["error"])
    tests = {key: _names(value[key], key) for key in ("passed", "failed", "warned", "skipped")}
    if error is None and not tests["passed"] and not tests["failed"]:
        raise strict.absurd("no test of the diagnostic was run")
    return Diagnosis(
        started_at=started,
        finished_at=finished,
        driver=strict.text(value["driver"], "driver"),
        level=strict.within(value["level"], "level", 1, 4),
        detail=strict.text(value["detail"], "detail"),
        error=error,
        **tests,
    )


def _names(value: Any, field: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise TypeError(field)
    if len(value) > MAX_TESTS:
        raise strict.absurd(f"{len(value)} tests in {field}")
    return tuple(strict.text(name, field) for name in value)
