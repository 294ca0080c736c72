"""Reads what ``include/probes/throughput.py`` wrote into its termination message, strictly; see ``message``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gpu_fleet.core.probes import message as strict
from gpu_fleet.core.probes.message import ProbeError

SCHEMA = "gpu-fleet.io/throughput/v1"
#: Windows, and their width in ms: far beyond what the program writes.
MAX_WINDOWS, MAX_WIDTH_MS = 2000, 600_000.0
#: Multiply-adds per second that no GPU reaches (a B200 does 4e13 in FP32).
MAX_RATE = 1e16
#: Most multiprocessors; a B200 has 148.
MAX_MULTIPROCESSORS = 4096
#: Whole windows that a rate needs: of fewer the edges weigh too much.
LEAST_WINDOWS = 4


@dataclass(frozen=True)
class MeasuredGpu:
    """The GPU as CUDA shows it to the process; memory in MiB.

    :ivar memory_total_mib: under MPS too the whole GPU's.
    :ivar memory_free_mib: under MPS at most the client's limit.
    :ivar multiprocessors: under MPS the client's share.
    :ivar board_memory_mib: the whole GPU's by nvidia-smi, ``None`` where nvidia-smi does not report it.
    """

    uuid: str
    name: str
    memory_total_mib: int
    memory_free_mib: int
    multiprocessors: int
    board_memory_mib: int | None


@dataclass(frozen=True)
class Measurement:
    """One process's throughput over time.

    :ivar work: multiply-adds per launch.
    :ivar counts: launches per window.
    :ivar begin: epoch seconds of the first window, by the node's clock, so that processes can be compared.
    :ivar elapsed: seconds until the end of the last window, by the same clock.
    :ivar width: seconds of a window by the monotonic clock, which rates are taken by.
    """

    started_at: float
    finished_at: float
    driver: str
    cuda: str
    gpu: MeasuredGpu | None
    work: int
    begin: float
    elapsed: float
    width: float
    counts: tuple[int, ...]
    error: ProbeError | None

    @property
    def end(self) -> float:
        return self.begin + self.elapsed

    def rate(self, begin: float | None = None, end: float | None = None) -> float | None:
        """Multiply-adds per second in the windows that lie wholly between two moments (epoch seconds); ``None`` if they
        are too few.
        """
        if not self.counts:
            return None
        slot = self.elapsed / len(self.counts)
        first = self.begin if begin is None else begin
        last = self.end if end is None else end
        # A thousandth of a window: the moments are whole milliseconds.
        inside = [
            count
            for index, count in enumerate(self.counts)
            if self.begin + index * slot >= first - slot / 1000
            and self.begin + (index + 1) * slot <= last + slot / 1000
        ]
        if len(inside) < LEAST_WINDOWS:
            return None
        return sum(inside) * self.work / (len(inside) * self.width)

    def figures(self) -> dict[str, Any]:
        return {"driver": self.driver, "cuda": self.cuda, "gpu": self.gpu.name if self.gpu else ""}


def parse_throughput(message: str) -> Measurement:
    """The report in a termination message.

    :raises ProbeOutputError: see :func:`gpu_fleet.core.probes.message.read`.
    """
    return strict.read(message, SCHEMA, _measurement)


def _measurement(value: Mapping[str, Any]) -> Measurement:
    started, finished = strict.span(value)
    error = strict.error_of(value["error"])
    driver, cuda = strict.text(value["driver"], "driver"), strict.text(value["cuda"], "cuda")
    gpu = None if value["gpu"] is None else _gpu(value["gpu"])
    if error is not None:
        return Measurement(started, finished, driver, cuda, gpu, 0, started, 0.0, 0.0, (), error)
    if gpu is None:
        raise TypeError("gpu")
    if not strict.flag(value["verified"], "verified"):
        raise strict.absurd("it measured without an error, and yet did not verify the results")
    windows = value["windows"]
    counts = windows["counts"]
    if not isinstance(counts, list):
        raise TypeError("windows.counts")
    if not 1 <= len(counts) <= MAX_WINDOWS:
        raise strict.absurd(f"it has {len(counts)} windows")
    width = strict.number(windows["width"], "windows.width", 0.001, MAX_WIDTH_MS) / 1000
    work = strict.within(value["work"], "work", 1, 10**16)
    launches = tuple(strict.within(count, "windows.counts", 0, 10**9) for count in counts)
    if max(launches) * work / width > MAX_RATE:
        raise strict.absurd(f"{max(launches)} launches of {work} multiply-adds in {width:.3f} s: no GPU is so fast")
    begin = strict.time(windows["from"], "windows.from")
    elapsed = strict.within(windows["elapsed"], "windows.elapsed", 1, 86_400_000) / 1000
    # The program takes these one after another, so only rounding can bring them out of order.
    if begin < started - 0.01 or begin + elapsed > finished + 0.01:
        raise strict.absurd("its windows do not lie between its start and its end")
    return Measurement(started, finished, driver, cuda, gpu, work, begin, elapsed, width, launches, None)


def _gpu(value: Mapping[str, Any]) -> MeasuredGpu:
    total = strict.within(value["memoryTotalMiB"], "memoryTotalMiB", 1, strict.MAX_MEMORY_MIB)
    free = strict.within(value["memoryFreeMiB"], "memoryFreeMiB", 0, strict.MAX_MEMORY_MIB)
    if free > total:
        raise strict.absurd(f"{free} MiB are free of {total} MiB")
    return MeasuredGpu(
        uuid=strict.uuid(value["uuid"], "gpu.uuid"),
        name=strict.text(value["name"], "gpu.name"),
        memory_total_mib=total,
        memory_free_mib=free,
        multiprocessors=strict.within(value["multiprocessors"], "multiprocessors", 1, MAX_MULTIPROCESSORS),
        board_memory_mib=strict.memory(value["boardMemoryMiB"], "boardMemoryMiB"),
    )
