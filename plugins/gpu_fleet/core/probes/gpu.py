"""Reads what ``include/probes/gpu.sh`` wrote into its termination message, strictly; see ``message``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gpu_fleet.core.probes import message as strict
from gpu_fleet.core.probes.message import MESSAGE_LIMIT, ProbeError, ProbeOutputError

SCHEMA = "gpu-fleet.io/probe/v1"
#: More GPUs than any instance type has.
MAX_GPUS = 64
#: A day, in milliseconds.
_LONGEST_MS = 86_400_000


@dataclass(frozen=True)
class Gpu:
    """A GPU as a container sees it; memory in MiB, ``None`` where the driver does not report it."""

    uuid: str
    name: str
    memory_total_mib: int | None
    memory_free_mib: int | None


@dataclass(frozen=True)
class VectorAdd:
    """NVIDIA's vectorAdd sample: copies two vectors to the GPU, adds them there, compares the result."""

    passed: bool
    milliseconds: int
    exit_code: int
    output: str


@dataclass(frozen=True)
class ProbeOutput:
    """One probe's report; times in epoch seconds of the node's clock."""

    started_at: float
    finished_at: float
    driver: str
    cuda: str
    gpus: tuple[Gpu, ...]
    vector_add: VectorAdd | None
    error: ProbeError | None

    def figures(self) -> dict[str, Any]:
        return {"driver": self.driver, "cuda": self.cuda, "gpu": self.gpus[0].name if self.gpus else ""}


def parse_output(message: str) -> ProbeOutput:
    """The report in a termination message.

    :raises ProbeOutputError: see :func:`gpu_fleet.core.probes.message.read`.
    """
    return strict.read(message, SCHEMA, _output)


def _output(value: Mapping[str, Any]) -> ProbeOutput:
    started, finished = strict.span(value)
    gpus = value["gpus"]
    if not isinstance(gpus, list):
        raise TypeError("gpus")
    if len(gpus) > MAX_GPUS:
        raise strict.absurd(f"it sees {len(gpus)} GPUs")
    seen = tuple(_gpu(gpu) for gpu in gpus)
    if len({gpu.uuid for gpu in seen}) != len(seen):
        raise strict.absurd("it sees one GPU UUID twice")
    return ProbeOutput(
        started_at=started,
        finished_at=finished,
        driver=strict.text(value["driver"], "driver"),
        cuda=strict.text(value["cuda"], "cuda"),
        gpus=seen,
        vector_add=None if value["vectorAdd"] is None else _vector_add(value["vectorAdd"]),
        error=strict.error_of(value["error"]),
    )


def _gpu(value: Mapping[str, Any]) -> Gpu:
    uuid = strict.uuid(value["uuid"], "gpus.uuid")
    total = strict.memory(value["memoryTotalMiB"], "memoryTotalMiB")
    free = strict.memory(value["memoryFreeMiB"], "memoryFreeMiB")
    if total is not None and free is not None and free > total:
        raise strict.absurd(f"GPU {uuid} has {free} MiB free of {total} MiB")
    return Gpu(uuid, strict.text(value["name"], "gpus.name"), total, free)


def _vector_add(value: Mapping[str, Any]) -> VectorAdd:
    return VectorAdd(
        strict.flag(value["passed"], "vectorAdd.passed"),
        strict.within(value["milliseconds"], "vectorAdd.milliseconds", 0, _LONGEST_MS),
        strict.integer(value["exitCode"], "vectorAdd.exitCode"),
        strict.text(value["output"], "vectorAdd.output"),
    )


__all__ = [
    "MESSAGE_LIMIT",
    "SCHEMA",
    "Gpu",
    "ProbeError",
    "ProbeOutput",
    "ProbeOutputError",
    "VectorAdd",
    "parse_output",
]
