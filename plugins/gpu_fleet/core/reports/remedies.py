"""What to do about a reason: one sentence or two for whoever was paged. The list is in the order of the flow."""

from __future__ import annotations

REMEDIES: dict[str, str] = {
    # --- before validation -------------------------------------------------------------------------------------------
    "NotValidated": "Open the run: the first failed task's log names the cause.",
    "NodesMissing": "Nodes went away between the wait for capacity and validation; start another run.",
    "DriftedNodesHoldTheCap": "Raise limits.nodes as far as the message says and run gpu_lifecycle with "
    "replaceDrifted: idle; or do the other thing that the message names.",
    "NodeRoleNotAdmitted": "Create the access entry of the node role with the command in the message, then clear the "
    "task: instances that wait go on trying to join.",
    "NodeDoesNotJoin": "Look at the instance's console output (aws ec2 get-console-output), at the access entry of its "
    "role, and at the way from its subnet to the cluster's endpoint.",
    "KarpenterWithoutCredentials": "Create the pod identity association (or annotate the ServiceAccount for IRSA), "
    "then restart Karpenter's Deployment: credentials are given to pods when they are created.",
    "Drifted": "Apply the spec again with gpu_lifecycle, or change the spec to what is there.",
    # --- the node ----------------------------------------------------------------------------------------------------
    "NodeVanished": "The node was removed in mid-probe: look for a spot interruption or a deletion by hand, then start "
    "another run.",
    "NodeNotReady": "Look at the node's conditions and kubelet (kubectl describe node); replace it if it stays so.",
    "XidError": "Look the XID up in NVIDIA's list. A hardware error repeats: replace the node (delete its NodeClaim).",
    "HardwareNotReady": "The node's own monitoring reports faulty hardware (AcceleratedHardwareReady): replace the "
    "node (delete its NodeClaim).",
    "DriverUnknown": "The probe could not read the driver's version, which validation.minimumDriver needs; start "
    "another run.",
    "DriverTooOld": "Use a newer AMI in the spec's node class, or lower validation.minimumDriver.",
    "GpuLost": "A GPU was lost after the start and does not come back: replace the node (delete its NodeClaim).",
    "GpusGone": "The device plugin withdrew the GPUs; read its log on this node.",
    # --- labels, taints, RuntimeClass --------------------------------------------------------------------------------
    "RuntimeClassMissing": "Run gpu_lifecycle, which creates it, and find out who deleted it.",
    "TaintMissing": "Somebody took it off, or the NodePool has changed: run gpu_lifecycle, then replace the node.",
    "LabelMissing": "Somebody took it off, or the NodePool has changed: run gpu_lifecycle, then replace the node.",
    # --- device plugin and sharing -----------------------------------------------------------------------------------
    "SecondDevicePlugin": "Two device plugins fight over the node: keep the other one off it as the message says (or "
    "set devicePlugin.manage: false), then restart the one that stays there.",
    "DevicePluginNotRegistered": "Read the log of the device plugin's pod on this node; without a pod, check the "
    "DaemonSet's nodeSelector and tolerations.",
    "DevicePluginNotReady": "Read the log of the device plugin's pod on this node; it may be about to lose its GPUs.",
    "InjectedContainerNotReady": "An admission webhook adds a container to the device plugin's pods that does not get "
    "ready: exempt the plugin's namespace from it, or mend the container that the message names. Neither the plugin's "
    "release nor the node is at fault.",
    "SharingNotApplied": "The plugin runs without the pool's sharing config: check the node's label "
    "nvidia.com/device-plugin.config and the release's ConfigMap; run gpu_lifecycle.",
    "AllocatableMismatch": "This node's plugin advertises another number than the spec promises: restart its pod, and "
    "compare its config with the other nodes'.",
    "MpsDaemonAbsent": "The MPS control daemon does not run on this node: look at its DaemonSet and at the node's "
    "label nvidia.com/mps.capable.",
    "DevicePluginMpsDaemon": "The MPS control daemon on the node does not serve, so the plugin registers no GPU: read "
    "the daemon's log (kubectl logs of the pod that the message names, --previous where it restarts).",
    "DevicePluginNotRegistering": "Read the log of the device plugin's pod on this node (driver, config entry).",
    "MpsLimitMissing": "Clients run without MPS's limits: restart the MPS control daemon, then the device plugin.",
    "GpuNotExclusive": "Whole GPUs are shared although the pool promises otherwise: check the plugin's config.",
    "GpuOvercommitted": "More containers share a GPU than promised: check the plugin's config for this node.",
    "DifferentGpus": "Sharers of one GPU saw several: check the instance type and the plugin's config.",
    "WrongGpuCount": "nvidia-smi and EC2 disagree on the GPUs: a GPU is lost or hidden; replace the node.",
    "SeesWrongGpus": "Containers see other GPUs than they asked for: check the container runtime's NVIDIA mode.",
    "Oversubscribed": "More pods were placed than there are shares: check the node's allocatable against its config.",
    "TwoSharesGranted": "failRequestsGreaterThanOne is not in force: check the plugin's config.",
    # --- the probes --------------------------------------------------------------------------------------------------
    "RanOneAfterAnother": "Containers had to wait for each other's GPU, so it is not shared: check the sharing config.",
    "SharerStarved": "One sharer got far less than the others: look for another process on this GPU (nvidia-smi), "
    "then replace the node.",
    "ThroughputTooLow": "All sharers together reach too little of what one does alone: look at clocks, temperature and "
    "other processes (nvidia-smi -q), then replace the node.",
    "GpuSlow": "One GPU is slower than its neighbours: look at clocks, temperature and power (nvidia-smi -q), then "
    "replace the node.",
    "NothingComputed": "The GPU took the work and finished none: look for XID errors, then replace the node.",
    "WrongResult": "The GPU computed wrongly: take the node out of service and replace it.",
    "CudaFailed": "CUDA itself fails here: compare driver and image, look for XID errors, replace the node.",
    "NoDriverLibrary": "The container has no CUDA driver: is the NVIDIA runtime configured on this AMI?",
    "NoNvidiaSmi": "The container has no nvidia-smi: is the NVIDIA runtime configured on this AMI?",
    "NvidiaSmiFailed": "nvidia-smi fails in the container: look for XID errors in the kernel log, replace the node.",
    "NoGpuVisible": "The container got a GPU and sees none: is the NVIDIA runtime configured on this AMI?",
    "DcgmFailed": "The message names DCGM's failed tests; a hardware test that fails twice means a new node.",
    "NoDcgm": "validation.images.dcgm has no dcgmi: name an image of DCGM.",
    "NoHostEngine": "DCGM's host engine does not start or answer in the container: compare the versions of "
    "validation.images.dcgm and the node's driver.",
    "DiagnosticFailed": "DCGM's diagnostic itself did not run; the message shows what it said. Run the image by hand "
    "on this node.",
    "NoVectorAdd": "validation.images.vectorAdd has no validation.commands.vectorAdd; name NVIDIA's image, or the path "
    "in yours, or set validation.probes.vectorAdd: false.",
    "Interrupted": "The probe was told to stop: somebody deleted it, or its node is being drained; start another run.",
    "ProbeBroken": "The probe itself failed; its message says how. Run the image by hand on this node.",
    "LittleMemoryFree": "Users' pods fill the memory of a GPU that they share, so no probe ran on it; nothing to do.",
    "InjectedContainerFailed": "An admission webhook adds a container to the probe pods that cannot run: exempt "
    "validation.namespace from it, or mend its image.",
    "VectorAddFailed": "CUDA itself fails here: compare driver and image, look for XID errors, replace the node.",
    "ImageUnpullable": "Check the image's name and tag in validation.images, the pull secret, and the way to the "
    "registry; mirror the image for clusters without Internet access.",
    "ContainerNotStarted": "The container runtime refused it: is the NVIDIA runtime configured on this AMI?",
    "ProbeTimedOut": "Look at the probe pod's events; raise deadlines.validation if images are large.",
    "ProbeOOMKilled": "The probe was killed for memory; look at what else runs on the node.",
    "ProbeCrashed": "Run the same image by hand on this node and read its output.",
    "ProbesStay": "An earlier probe's pod does not end: look for a process that hangs in the driver and for XID "
    "errors, then replace the node; kubectl delete pod --force lets go of the pod alone.",
    "PodVanished": "Somebody deleted the probe pod, or its node went; start another run.",
    "NoFreeGpu": "The GPUs were taken in between, or the node advertises fewer than it should; start another run.",
    "Unschedulable": "Read the scheduler's words in the message; taints and affinities are usual causes.",
    "AdmissionRefused": "The kubelet refused the pod; its log on the node says why.",
    "ProbesForbidden": "The API server refuses the probe pods: check quota, admission policies and RBAC of "
    "validation.namespace.",
    "QuotaExceeded": "Raise the quota of validation.namespace or remove it.",
    "OutputNotJson": "The probe wrote something else than its report: check validation.images for a replaced image.",
    "OutputTooLarge": "The probe wrote more than a termination message holds: check validation.images.",
    "OutputOfOtherSchema": "The image's probe is of another version: use the one that belongs to this package.",
    "NoOutput": "The probe ended without a report: run the image by hand on this node.",
    "AbsurdFigures": "The figures cannot be true: suspect the driver or the image before the GPU.",
    "ClockSkew": "The node's clock is wrong: check chrony on the node, then replace it.",
    "GpusSeenUnasked": "Let these pods ask for GPUs, or take NVIDIA_VISIBLE_DEVICES out of them. Only a device plugin "
    "with the device list strategy volume-mounts or CDI, and nodes whose toolkit does not believe the variable, keep "
    "all pods from it; see docs/guides/validation.md.",
    # --- doubt -------------------------------------------------------------------------------------------------------
    "ReportsMissing": "Some probes left no report: start another run.",
    "NotRefused": "The scheduler's refusal was not seen: start another run.",
    "NoTimes": "Start and end of the probes are unknown: start another run.",
    "NoTimeAlone": "The comparison needs one probe to compute alone: raise validation.throughput.duration.",
    "TooLittleOverlap": "The sharers started too far apart: raise validation.overlap or throughput.duration; slow "
    "starts are the usual cause.",
    "TooFewWindows": "The measurement was too short: raise validation.throughput.duration.",
    "NothingChecked": "No check took place on this node: start another run.",
    "DriftUnknown": "Some objects could not be read: check the permissions of the role that Airflow uses.",
    # --- the pool as a whole -----------------------------------------------------------------------------------------
    "NodeClaimsBought": "A node was bought while validation ran: look at its NodeClaim's events and users' pods.",
    "NodeClaimsLost": "A node was removed although validation protects it: look for deletions by hand, "
    "expireAfter, and what the message quotes of Karpenter.",
    "NodesUnproven": "The nodes that the message names failed before: free them, so that they can be probed, "
    "or cordon or delete them.",
    # --- neither pass nor alarm --------------------------------------------------------------------------------------
    "Busy": "Nothing to do: nobody is disturbed, and the next run tries again.",
    "TakenMeanwhile": "Nothing to do: a user's pod took the place of a probe, and the next run tries again.",
    "MemoryInUse": "Nothing to do: others fill the shared GPU's memory, and the next run tries again.",
    "NoRoomLeft": "Nothing to do: others use the node's CPU, memory or places for pods, and the next run tries again.",
    "PartlyBusy": "Nothing to do: others use shares of the GPU, and the next run tries again.",
    "Idle": "Nothing to do: there is no node to look at. gpu_lifecycle creates capacity.",
}

#: For a reason that the list does not have, for example one of a later version.
UNKNOWN = "The message says what was found; the run's logs have the rest."


def remedy(reason: str) -> str:
    """What to do about a reason; never empty."""
    if reason.startswith("DevicePlugin") and reason not in REMEDIES:
        return REMEDIES["DevicePluginNotRegistered"]
    return REMEDIES.get(reason, UNKNOWN)
