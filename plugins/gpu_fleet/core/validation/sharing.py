"""What must hold for shared GPUs, and for GPUs that are not shared, after NVIDIA's device plugin documentation ('Shared
Access to GPUs').

As many containers as promised run *at the same time*; they land on the GPUs as promised; one more has to wait; and, if
so configured, a container that requests two shares is refused. A Job with that parallelism alone would pass without any
sharing: its pods would run one after another.
"""

from __future__ import annotations

from collections import Counter

from gpu_fleet.core.kubernetes.names import GPU_RESOURCE
from gpu_fleet.core.validation.evidence import INSUFFICIENT, NodeEvidence, overlap
from gpu_fleet.core.validation.pods import MAX_SKEW_S, NO_ROOM, TAKEN
from gpu_fleet.core.validation.report import Check, busy, doubt, failed, passed, skipped

#: NVIDIA's words for a refused request (k8s-device-plugin internal/rm/rm.go, ValidateRequest).
_TOO_LARGE = "maximum request size for shared resources"


def one_gpu_each(e: NodeEvidence) -> Check:
    """A container that requests one GPU sees one."""
    seen = sorted({len(output.gpus) for output in e.outputs})
    if seen != [1]:
        return failed(
            "visible", "SeesWrongGpus", f"containers that requested one GPU see {', '.join(map(str, seen))}", seen=seen
        )
    return passed("visible", "OneGpuEach", "every container sees exactly one GPU")


def concurrent(e: NodeEvidence) -> Check:
    """All probes with room ran at the same time."""
    if e.round.fill < 2:
        return skipped("concurrency", "OneAtATime", "there is room for one container only")
    window = overlap(e.sharers)
    if window is None:
        return doubt("concurrency", "NoTimes", "some probes have no start or end time")
    if window > 0:
        message = f"{e.round.fill} containers ran at the same time for {window:.1f} s"
        return passed("concurrency", "RanTogether", message, containers=e.round.fill, seconds=round(window, 1))
    return _not_together(e, window)


def _not_together(e: NodeEvidence, window: float) -> Check:
    """Why the sharers never ran all at once: allocatable is as promised, so the GPU is not the first suspect."""
    name, figures = "concurrency", {"containers": e.round.fill, "seconds": round(window, 1)}
    words = (
        f"{e.round.fill} containers never ran all at once (the last started {-window:.1f} s after the first had ended)"
    )
    first_end = min(pod.finished for pod in e.sharers if pod.finished is not None)
    late = [pod for pod in e.sharers if pod.scheduled is not None and pod.scheduled >= first_end]
    if any(pod.refused for pod in late):
        if e.others_hold:
            return busy(name, TAKEN, f"{words}: users' pods held {GPU_RESOURCE} that they waited for", **figures)
        return failed(
            name, "RanOneAfterAnother", f"{words} and had to wait for {GPU_RESOURCE}: the GPU is not shared", **figures
        )
    if e.user_pods.pods and (short_of := sorted(set().union(*(pod.short_of for pod in late)))):
        return busy(name, NO_ROOM, f"{words}: beside users' pods the node lacks {', '.join(short_of)}", **figures)
    why = "they were placed too late" if late else "all had their place in time, so their containers started too slowly"
    return doubt(name, "TooLittleOverlap", f"{words}; {why} for validation.overlap", **figures)


def distribution(e: NodeEvidence) -> Check:
    """The containers are spread over the GPUs as the sharing promises.

    Exclusive: no GPU twice. Time-slicing: no GPU more often than ``replicas``; with the node filled up, every GPU
    exactly that often, whatever order the device plugin's allocation policy prefers.
    """
    counts = Counter(output.gpus[0].uuid for output in e.outputs if output.gpus)
    spread = dict(sorted(counts.items()))
    free = {o.gpus[0].uuid: o.gpus[0].memory_free_mib for o in e.outputs if o.gpus}
    figures = {"containersPerGpu": spread, "memoryFreeMiB": dict(sorted(free.items()))}
    most = max(counts.values(), default=0)
    if most > e.replicas:
        reason = "GpuNotExclusive" if e.replicas == 1 else "GpuOvercommitted"
        uuid = counts.most_common(1)[0][0]
        message = f"GPU {uuid} was given to {most} containers at once; the pool promises {e.replicas}"
        return failed("distribution", reason, message, **figures)
    if e.physical == 1 and len(counts) > 1:
        return failed(
            "distribution", "DifferentGpus", f"sharers of a one-GPU node saw {len(counts)} different GPUs", **figures
        )
    if e.full and len(counts) != e.physical:
        return failed(
            "distribution",
            "WrongGpuCount",
            f"{e.round.fill} containers landed on {len(counts)} GPU(s), EC2 says the node has {e.physical}",
            **figures,
        )
    words = "one GPU each" if e.replicas == 1 else f"{len(counts)} GPU(s), at most {most} container(s) on each"
    return passed("distribution", "AsPromised", words, **figures)


def physical_count(e: NodeEvidence) -> Check:
    """nvidia-smi's physical count is EC2's; only the filled node shows it, since a container sees its own GPU alone."""
    uuids = {gpu.uuid for output in e.outputs for gpu in output.gpus}
    if not e.full:
        return skipped(
            "physical", "PartlyBusy", f"users' pods hold {e.round.held} of {e.slots}: not all GPUs could be seen"
        )
    if len(uuids) != e.physical:
        return failed(
            "physical", "WrongGpuCount", f"nvidia-smi shows {len(uuids)} GPU(s), EC2 says {e.physical}", seen=len(uuids)
        )
    return passed("physical", "CountsAgree", f"nvidia-smi and EC2 agree on {e.physical}", seen=len(uuids))


def bound(e: NodeEvidence) -> Check:
    """One pod more than there is room for has to wait, because of the GPUs, as long as the others run."""
    if not e.extras:
        return skipped("bound", "NotAsked", "the spec's validation.probes.oversubscription is false")
    extra = e.extras[0]
    if extra.scheduled is None:
        words = extra.unschedulable or ""
        if INSUFFICIENT in words:
            return passed("bound", "OneMoreWaits", f"pod {extra.name} stayed Pending: {words}")
        return doubt(
            "bound", "NotRefused", f"pod {extra.name} was not placed, but not for lack of a GPU: {words or 'no reason'}"
        )
    ends = [pod.finished for pod in e.sharers if pod.finished is not None]
    if not ends:
        return doubt("bound", "NoTimes", "no probe has an end time")
    # A pod's place is by the scheduler's clock, a container's end by the node's, which may be ahead. A pod that was
    # first refused for its GPU and then placed just before an end was placed because of that end.
    tolerated = MAX_SKEW_S if extra.refused else 0.0
    if extra.scheduled < min(ends) - tolerated:
        if e.round.held:
            return skipped("bound", "OthersFreedGpus", "a user's pod ended meanwhile and made room")
        return failed(
            "bound",
            "Oversubscribed",
            f"pod {extra.name} was placed while {e.round.fill} containers held all {e.slots} GPUs of the node",
        )
    if extra.refused:
        return passed("bound", "OneMoreWaits", f"pod {extra.name} was placed only after another had ended")
    return doubt("bound", "NotRefused", f"pod {extra.name} waited, but the scheduler never named {GPU_RESOURCE}")


def refusal(e: NodeEvidence) -> Check:
    """A container that requests two shares of a GPU is refused: it would not get twice the GPU."""
    if not e.round.greedy:
        return skipped("refusal", "NotAsked", "requests for several GPUs are allowed here, or there was no room to try")
    pod = e.greedy
    if pod is None:
        return skipped("refusal", "PodVanished", "the pod that requested two GPUs was deleted")
    if pod.admission is not None:
        if _TOO_LARGE in pod.admission:
            return passed("refusal", "TwoSharesRefused", f"a request for two was refused: {pod.admission}")
        return skipped(
            "refusal", "RefusedOtherwise", f"the request for two was refused for another cause: {pod.admission}"
        )
    if pod.started is not None or pod.phase == "Succeeded":
        return failed(
            "refusal",
            "TwoSharesGranted",
            f"pod {pod.name} got two shares although failRequestsGreaterThanOne is set: the plugin's config differs",
        )
    return skipped("refusal", "NotTried", f"the pod that requested two GPUs was not tried ({pod.phase})")
