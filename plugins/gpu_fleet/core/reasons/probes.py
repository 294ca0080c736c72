"""Reasons for which a node fails, is doubted or left alone because of its probes: ``core/validation``."""

from __future__ import annotations

from functools import partial

from gpu_fleet.core.reasons.reason import Effect, Reason, Section

_WEBHOOKS = "shared-clusters.md#admission-webhooks"
_EXCLUSIVE = "validation.md#what-exclusive-proves-and-what-not"

_fails = partial(Reason, effect=Effect.NODE_FAILS)
_in_node = partial(Reason, effect=Effect.NODE_FAILS, in_node=True)
_doubt = partial(Reason, effect=Effect.DOUBT)
_busy = partial(Reason, effect=Effect.BUSY)

_RUNTIME = "Check whether the NVIDIA runtime is configured on this AMI."
_AGAIN = "Start another run."
_NOTHING = "Nothing to do: the next run tries again."

PROBES = Section(
    "Probes",
    "checks `room` to `dcgm`, of the probes' pods; in reports and in the tasks `validation.…`",
    (
        _in_node(
            "DriverTooOld",
            found="the driver is older than `validation.minimumDriver`",
            remedy="Use a newer AMI in the spec's node class, or lower validation.minimumDriver.",
        ),
        _fails(
            "ImageUnpullable",
            found="the probe's image cannot be pulled",
            remedy="Check the image's name and tag in validation.images, the pull secret, and the network path to the "
            "registry; mirror the image for clusters without Internet access.",
        ),
        _fails(
            "InjectedContainerFailed",
            found="a container that an admission webhook adds to the probe pods cannot run",
            remedy="Exempt validation.namespace from the webhook, or repair the container's image.",
            guide=_WEBHOOKS,
        ),
        _in_node(
            "ProbesStay",
            found="an earlier probe's pod does not end on the node and may hold its GPUs",
            remedy="Look for a process that hangs in the driver and for XID errors, then replace the node; kubectl "
            "delete pod --force removes the pod alone.",
        ),
        _in_node(
            "ContainerNotStarted",
            found="the container runtime refuses the container",
            remedy=_RUNTIME,
        ),
        _in_node("NoNvidiaSmi", found="the container has no nvidia-smi", remedy=_RUNTIME),
        _in_node(
            "NvidiaSmiFailed",
            found="nvidia-smi fails in the container",
            remedy="Look for XID errors in the kernel log, then replace the node.",
        ),
        _in_node("NoGpuVisible", found="the container got a GPU and sees none", remedy=_RUNTIME),
        _in_node("NoDriverLibrary", found="the container has no CUDA driver", remedy=_RUNTIME),
        _in_node(
            "VectorAddFailed",
            found="CUDA's vectorAdd fails",
            remedy="Compare driver and image, and look for XID errors; replace the node.",
        ),
        _in_node(
            "CudaFailed",
            found="CUDA itself fails",
            remedy="Compare driver and image, and look for XID errors; replace the node.",
        ),
        _in_node(
            "WrongResult",
            found="the GPU computed a wrong result",
            remedy="Take the node out of service and replace it.",
        ),
        _fails(
            "NoVectorAdd",
            found="the image in `validation.images.vectorAdd` has no `validation.commands.vectorAdd`",
            remedy="Name NVIDIA's image, or the path of the program in yours, or set validation.probes.vectorAdd: "
            "false.",
        ),
        _fails(
            "LittleMemoryFree",
            found="users' pods fill the memory of a GPU that they share, so no probe ran on it; the node is Busy "
            "(`MemoryInUse`) if users' pods use it",
            remedy=_NOTHING,
        ),
        _fails(
            "Interrupted",
            found="the probe received a signal to stop: its pod was deleted, or its node is being drained",
            remedy=_AGAIN,
        ),
        _fails(
            "ProbeBroken",
            found="the probe program itself failed; the message says how",
            remedy="Run the image by hand on this node.",
        ),
        _fails(
            "ProbeTimedOut",
            found="the probe did not finish within its deadline",
            remedy="Look at the probe pod's events; raise deadlines.validation if the images are large.",
        ),
        _fails(
            "ProbeOOMKilled",
            found="the probe was killed for memory",
            remedy="Look at what else runs on the node.",
        ),
        _fails(
            "ProbeCrashed",
            found="the probe ended with an error and without a report",
            remedy="Run the same image by hand on this node and read its output.",
        ),
        _fails(
            "PodVanished",
            found="the probe's pod was deleted, or its node was removed",
            remedy=_AGAIN,
        ),
        _fails(
            "NoFreeGpu",
            found="the GPUs were taken in between, or the node offers fewer than it should",
            remedy=_AGAIN,
        ),
        _fails(
            "Unschedulable",
            found="the scheduler did not place the probe; the message has its words",
            remedy="Taints and affinities are the usual causes.",
        ),
        _fails(
            "AdmissionRefused",
            found="the kubelet refused the probe's pod",
            remedy="Read the kubelet's log on the node.",
        ),
        _fails(
            "ProbesForbidden",
            found="the API server refuses the probe pods; the message has its words",
            remedy="Check quota, admission policies and RBAC of validation.namespace.",
        ),
        _fails(
            "QuotaExceeded",
            found="a ResourceQuota of `validation.namespace` refuses the probe pods",
            remedy="Raise the quota of validation.namespace or remove it.",
        ),
        _fails(
            "OutputNotJson",
            found="the probe wrote something other than its report",
            remedy="Check validation.images for a replaced image.",
        ),
        _fails(
            "OutputTooLarge",
            found="the probe wrote more than a termination message holds",
            remedy="Check validation.images for a replaced image.",
        ),
        _fails(
            "OutputOfOtherSchema",
            found="the image's probe is of another version",
            remedy="Use the probe that belongs to this version of the package.",
        ),
        _fails(
            "NoOutput",
            found="the probe ended without a report",
            remedy="Run the image by hand on this node.",
        ),
        _fails(
            "AbsurdFigures",
            found="the probe reported negative or impossible figures",
            remedy="Suspect the driver or the image before the GPU.",
        ),
        _in_node(
            "ClockSkew",
            found="the node's clock is off by more than 10 s",
            remedy="Check chrony on the node, then replace it.",
        ),
        _in_node(
            "SeesWrongGpus",
            found="a container that asked for one GPU sees others",
            remedy="Check the container runtime's NVIDIA mode.",
        ),
        _in_node(
            "RanOneAfterAnother",
            found="sharers never ran at the same time and waited for each other's GPU, so it is not shared",
            remedy="Check the sharing config.",
        ),
        _in_node(
            "DifferentGpus",
            found="sharers of a node with one GPU saw several",
            remedy="Check the instance type and the plugin's config.",
        ),
        _in_node(
            "WrongGpuCount",
            found="nvidia-smi and EC2 disagree on the number of GPUs: one is lost or hidden",
            remedy="Replace the node.",
        ),
        _in_node(
            "GpuNotExclusive",
            found="whole GPUs are shared although the pool promises otherwise",
            remedy="Check the plugin's config.",
        ),
        _in_node(
            "GpuOvercommitted",
            found="more containers share a GPU than promised",
            remedy="Check the plugin's config for this node.",
        ),
        _in_node(
            "Oversubscribed",
            found="more pods were placed than there are shares",
            remedy="Compare the node's allocatable with its config.",
        ),
        _in_node(
            "TwoSharesGranted",
            found="a request for two shares was granted, so failRequestsGreaterThanOne is not in force",
            remedy="Check the plugin's config.",
        ),
        _in_node(
            "SharerStarved",
            found="the named pod got far less of a GPU than the others",
            remedy="Look for another process on this GPU (nvidia-smi), then replace the node.",
        ),
        _in_node(
            "ThroughputTooLow",
            found="all sharers together reach too little of what one does alone",
            remedy="Look at clocks, temperature and other processes (nvidia-smi -q), then replace the node.",
        ),
        _in_node(
            "GpuSlow",
            found="one whole GPU is slower than the others of its node",
            remedy="Look at clocks, temperature and power (nvidia-smi -q), then replace the node.",
        ),
        _in_node(
            "NothingComputed",
            found="the GPU took the work and finished none",
            remedy="Look for XID errors, then replace the node.",
        ),
        _in_node(
            "MpsLimitMissing",
            found="an MPS client may take more memory than its share, or does more work when it is alone",
            remedy="Clients run without MPS's limits: restart the MPS control daemon, then the device plugin.",
        ),
        _in_node(
            "DcgmFailed",
            found="the named tests of DCGM failed",
            remedy="A hardware test that fails twice calls for a new node.",
        ),
        _fails(
            "NoDcgm",
            found="the image in `validation.images.dcgm` has no dcgmi",
            remedy="Name an image of DCGM in validation.images.dcgm.",
        ),
        _fails(
            "NoHostEngine",
            found="DCGM's host engine does not start or answer in the container",
            remedy="Compare the versions of validation.images.dcgm and of the node's driver.",
        ),
        _fails(
            "DiagnosticFailed",
            found="DCGM's diagnostic itself did not run; the message shows what it said",
            remedy="Run the image by hand on this node.",
        ),
        Reason(
            "GpusSeenUnasked",
            Effect.CHECK_SKIPPED,
            "pods see GPUs that they did not request",
            "Let these pods request GPUs, or remove NVIDIA_VISIBLE_DEVICES from them. Only a device plugin with the "
            "device list strategy volume-mounts or CDI, together with nodes whose toolkit ignores the variable, keeps "
            "all pods from it.",
            guide=_EXCLUSIVE,
        ),
    ),
)

DOUBT = Section(
    "Doubt",
    "checks whose evidence is missing or contradicts itself, which is never a pass; in reports and in the tasks "
    "`validation.…`",
    (
        _doubt(
            "DriverUnknown",
            found="no probe reported the driver's version, which `validation.minimumDriver` needs",
            remedy=_AGAIN,
        ),
        _doubt("ReportsMissing", found="some probes left no report", remedy=_AGAIN),
        _doubt("NotRefused", found="the scheduler's refusal of one pod more was not seen", remedy=_AGAIN),
        _doubt("NoTimes", found="start or end of the probes is unknown", remedy=_AGAIN),
        _doubt(
            "NoTimeAlone",
            found="no probe computed alone for long enough to compare the sharers with",
            remedy="Raise validation.throughput.duration.",
        ),
        _doubt(
            "TooLittleOverlap",
            found="the sharers started too far apart",
            remedy="Raise validation.overlap or throughput.duration; slow starts are the usual cause.",
        ),
        _doubt(
            "TooFewWindows",
            found="a measurement is too short",
            remedy="Raise validation.throughput.duration.",
        ),
        _doubt("NothingChecked", found="no check took place on this node", remedy=_AGAIN),
    ),
)

BUSY = Section(
    "Busy",
    "checks of the probes' pods, neither a pass nor an alarm; in reports, and as a pool's verdict",
    (
        _busy(
            "Busy",
            found="all GPUs are in use; for MPS and diagnostics, some",
            remedy="Nothing to do: no user is disturbed, and the next run tries again.",
        ),
        _busy("TakenMeanwhile", found="a user's pod took the place of a probe", remedy=_NOTHING),
        _busy("NoRoomLeft", found="users' pods fill the node's CPU, memory or places for pods", remedy=_NOTHING),
        _busy("MemoryInUse", found="users' pods fill the memory of a shared GPU", remedy=_NOTHING),
        _busy(
            "PartlyBusy",
            found="users' pods use shares of the GPU, so that speed says nothing",
            remedy=_NOTHING,
        ),
        _busy(
            "Preempted",
            found="a probe gave its place to a user's pod; the node is Busy",
            remedy=_NOTHING,
        ),
    ),
)
