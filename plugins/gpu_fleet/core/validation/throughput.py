"""The verdict on measured throughput: fairness among sharers, their sum against one alone, whole GPUs among each other.

No figure is compared with a data sheet: GPUs throttle, and instance types of one pool differ. What is compared was
measured on the same node within the same minute, and the windows of its processes are laid side by side by its one
clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

from gpu_fleet.core.probes.throughput import Measurement
from gpu_fleet.core.validation.evidence import NodeEvidence
from gpu_fleet.core.validation.report import Check, busy, doubt, failed, passed, skipped

#: How much more memory than its share a client of MPS may be offered: the daemon rounds.
_MPS_SLACK = 1.15


@dataclass(frozen=True)
class Together:
    """The sharers of one GPU while all of them computed; rates in multiply-adds per second.

    :ivar rates: pod -> its rate; ``None``: the common time is too short to tell.
    :ivar alone: the rate of the sharer that continued when the others had ended, ``None`` without one.
    """

    uuid: str
    rates: Mapping[str, float] | None
    alone: float | None

    @property
    def total(self) -> float:
        return sum((self.rates or {}).values())


def sharers_by_gpu(measurements: Mapping[str, Measurement]) -> dict[str, dict[str, Measurement]]:
    """GPU UUID -> pod -> measurement."""
    found: dict[str, dict[str, Measurement]] = {}
    for pod, measurement in sorted(measurements.items()):
        if measurement.gpu is not None:
            found.setdefault(measurement.gpu.uuid, {})[pod] = measurement
    return found


def together(uuid: str, sharers: Mapping[str, Measurement]) -> Together:
    """How the sharers of one GPU did while all computed, and how the last of them did alone."""
    begin, end = max(m.begin for m in sharers.values()), min(m.end for m in sharers.values())
    rates = {pod: m.rate(begin, end) for pod, m in sharers.items()}
    known = {pod: rate for pod, rate in rates.items() if rate is not None}
    last = max(sharers.values(), key=lambda m: m.end)
    others = [m.end for m in sharers.values() if m is not last]
    return Together(
        uuid=uuid,
        rates=known if len(known) == len(sharers) else None,
        alone=last.rate(max(others), None) if others else last.rate(),
    )


def gflops(rate: float) -> float:
    """A multiply-add is two floating point operations."""
    return round(2 * rate / 1e9, 1)


def _shared(e: NodeEvidence) -> list[Together]:
    """The GPUs that several probes shared."""
    return [together(uuid, pods) for uuid, pods in sharers_by_gpu(e.measurements).items() if len(pods) > 1]


def fairness(e: NodeEvidence) -> Check:
    """No sharer gets much less of a GPU than the others."""
    name = "fairness"
    if e.replicas == 1:
        return skipped(name, "NotShared", "every container has a GPU of its own")
    if e.others_hold:
        rates = [gflops(rate) for m in e.measurements.values() if (rate := m.rate()) is not None]
        words = f"; the fastest probe did {max(rates)} GFLOP/s beside them" if rates else ""
        return busy(
            name, "PartlyBusy", f"users' pods use shares of node {e.round.node}, and how much is not known{words}"
        )
    gpus = _shared(e)
    if not gpus:
        return skipped(name, "OneAtATime", "no GPU had room for two containers")
    if unclear := next((gpu for gpu in gpus if gpu.rates is None), None):
        message = (
            f"the sharers of GPU {unclear.uuid} computed together for too short a time: they started further apart "
            "than validation.overlap covers"
        )
        return doubt(name, "TooLittleOverlap", message)
    figures: dict[str, dict[str, float]] = {}
    worst: tuple[float, str, Together] | None = None
    for gpu in gpus:
        if not gpu.total:
            return failed(name, "NothingComputed", f"no sharer of GPU {gpu.uuid} finished any work in the common time")
        shares = {pod: rate / gpu.total for pod, rate in (gpu.rates or {}).items()}
        figures[gpu.uuid] = {pod: round(share, 3) for pod, share in shares.items()}
        pod = min(shares, key=lambda each: shares[each])
        relative = shares[pod] * len(shares)
        if worst is None or relative < worst[0]:
            worst = (relative, pod, gpu)
    relative, pod, gpu = worst or (1.0, "", gpus[0])
    count = len(gpu.rates or {})
    if relative < 1 - e.promise.tolerance:
        message = (
            f"pod {pod} got {100 * relative / count:.0f} % of GPU {gpu.uuid}, its fair share among {count} is "
            f"{100 / count:.0f} % and at least {100 * (1 - e.promise.tolerance) / count:.0f} % is required"
        )
        return failed(name, "SharerStarved", message, shares=figures, pod=pod)
    message = f"each of {count} sharers got at least {100 * relative:.0f} % of its fair share"
    return passed(name, "SharedFairly", message, shares=figures)


def total(e: NodeEvidence) -> Check:
    """The sharers together lose little against one alone; under MPS each keeps what its limit gives it."""
    name = "throughput"
    if e.replicas == 1:
        return skipped(name, "NotShared", "every container has a GPU of its own")
    gpus = _shared(e)
    if not gpus:
        rates = [rate for m in e.measurements.values() if (rate := m.rate()) is not None]
        words = f"one alone: {gflops(max(rates))} GFLOP/s; " if rates else ""
        return skipped(name, "OneAtATime", f"{words}no GPU had room for two containers")
    alone = max((gpu.alone for gpu in gpus if gpu.alone is not None), default=None)
    if not alone:
        return doubt(name, "NoTimeAlone", "no probe computed alone for long enough to compare the sharers with")
    worst = min(gpus, key=lambda gpu: gpu.total)
    count = len(worst.rates or {})
    # Time-slicing: one alone has the whole GPU. MPS: it has its share of it also then, and the others have theirs.
    whole = alone * count if e.promise.mps else alone
    ratio = worst.total / whole
    figures = {
        "aloneGflops": gflops(alone),
        "togetherGflops": {gpu.uuid: gflops(gpu.total) for gpu in gpus},
        "ratio": round(ratio, 3),
        "asked": e.promise.minimum_total,
    }
    words = (
        f"{count} sharers of GPU {worst.uuid} did {gflops(worst.total)} GFLOP/s together, "
        f"{100 * ratio:.0f} % of {'as many times what' if e.promise.mps else 'what'} one does alone "
        f"({gflops(alone)} GFLOP/s)"
    )
    if ratio < e.promise.minimum_total:
        words += f"; at least {100 * e.promise.minimum_total:.0f} % is required"
        if e.promise.mps:
            return failed(name, "MpsLimitMissing", f"{words}: the daemon does not limit a client's threads", **figures)
        return failed(name, "ThroughputTooLow", words, **figures)
    return passed(name, "LittleLost", words, **figures)


def whole_gpus(e: NodeEvidence) -> Check:
    """No whole GPU is much slower than the others of its node."""
    name = "gpus"
    if e.replicas > 1:
        return skipped(name, "Shared", "the GPUs are shared")
    rates = {m.gpu.uuid: m.rate() for m in e.measurements.values() if m.gpu is not None}
    known = {uuid: rate for uuid, rate in sorted(rates.items()) if rate is not None}
    if len(known) < len(rates) or not known:
        return doubt(name, "TooFewWindows", f"{len(rates) - len(known)} of {len(rates)} measurements are too short")
    figures = {uuid: gflops(rate) for uuid, rate in known.items()}
    slowest, middle = min(known, key=lambda uuid: known[uuid]), median(known.values())
    if not middle:
        return failed(name, "NothingComputed", "no GPU finished any work in the measured time", gflops=figures)
    if known[slowest] < (1 - e.promise.tolerance) * middle:
        message = (
            f"GPU {slowest} does {gflops(known[slowest])} GFLOP/s, {100 * known[slowest] / middle:.0f} % of the median "
            f"of the node's {len(known)} GPUs"
        )
        return failed(name, "GpuSlow", message, gflops=figures, gpu=slowest)
    words = (
        "nothing to compare with on this node" if len(known) == 1 else f"within tolerance of {gflops(middle)} GFLOP/s"
    )
    return passed(name, "GpusAlike", f"{len(known)} GPU(s), {words}", gflops=figures)


def memory(e: NodeEvidence) -> Check:
    """The memory that each container sees; only MPS limits it, and then it must.

    A client of MPS still sees the whole GPU's total; its limit shows in what CUDA calls free, and that much it can take
    and no more (recorded on an H200 with driver 580, ``bench/gpu.py``; also NVIDIA/k8s-device-plugin#764).
    """
    name = "memory"
    seen = {pod: m.gpu for pod, m in e.measurements.items() if m.gpu is not None}
    figures = {
        "totalMiB": {pod: gpu.memory_total_mib for pod, gpu in seen.items()},
        "freeMiB": {pod: gpu.memory_free_mib for pod, gpu in seen.items()},
        "multiprocessors": {pod: gpu.multiprocessors for pod, gpu in seen.items()},
    }
    sizes = sorted({gpu.memory_total_mib for gpu in seen.values()})
    words = " or ".join(f"{size} MiB" for size in sizes)
    if e.replicas == 1:
        return passed(name, "WholeGpu", f"every container sees {words} of its own GPU", **figures)
    if not e.promise.mps:
        message = f"every sharer sees {words}, the GPU's whole memory: time-slicing isolates none"
        return passed(name, "NotIsolated", message, **figures)
    # Without nvidia-smi's word CUDA's total, which leaves out what the driver keeps.
    boards = {pod: gpu.board_memory_mib or gpu.memory_total_mib for pod, gpu in seen.items()}
    greedy = [pod for pod, board in boards.items() if seen[pod].memory_free_mib > _MPS_SLACK * board / e.replicas]
    if greedy:
        pod = greedy[0]
        message = (
            f"client {pod} may take {seen[pod].memory_free_mib} MiB of {boards[pod]}; its limit should be "
            f"{boards[pod] // e.replicas} (1/{e.replicas})"
        )
        return failed(name, "MpsLimitMissing", message, **figures)
    most = max(gpu.memory_free_mib for gpu in seen.values())
    message = f"no client may take more than {most} MiB; 1/{e.replicas} of its GPU is its limit"
    return passed(name, "Limited", message, **figures)
