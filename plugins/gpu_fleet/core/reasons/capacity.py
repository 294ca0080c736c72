"""Reasons of the wait for capacity and of the device plugin. Launches: ``core/aws/launch_errors.py``."""

from __future__ import annotations

from gpu_fleet.core.reasons.reason import Effect, Reason, Section

_WAITS, _LASTS, _LASTS_PERSON = Effect.WAITS, Effect.WAITS_THEN_RETRIED, Effect.WAITS_THEN_PERSON
_RETRIED, _PERSON, _ON = Effect.RETRIED, Effect.PERSON, Effect.GOES_ON

CAPACITY = Section(
    "The wait for capacity",
    "tasks `capacity.…`, gates `pool_capacity`, `burst` and `images_pulled`; a reason of a node names that node",
    (
        Reason("CapacityReady", _ON, "the pool has as many good nodes as it wants"),
        Reason(
            "NodesMissing",
            _LASTS,
            "wanted nodes are missing; after the wait, nodes were removed or cordoned between the wait and validation",
            "Start another run.",
        ),
        Reason(
            "JobStays",
            _RETRIED,
            "a Job of an earlier window of headroom is still being deleted",
            "If it stays, look for a finalizer on the Job in gpu-fleet-system.",
            guide="capacity-times.md#headroom",
        ),
        Reason("CapacityLost", _RETRIED, "a node was removed during the wait; the next try requests it again"),
        Reason("WaitingForLaunch", _WAITS, "Karpenter has made a NodeClaim that is not launched yet"),
        Reason(
            "WaitingForKarpenter",
            _WAITS,
            "placeholders are pending and Karpenter has not answered",
            "Check whether Karpenter's controller is running.",
        ),
        Reason(
            "NoCompatibleInstanceTypes",
            _WAITS,
            "no instance type meets the NodePool's requirements",
            "Correct the pool's instance types, zones or capacity types; the message has Karpenter's words.",
        ),
        Reason(
            "NoInstanceTypeFits",
            _WAITS,
            "Karpenter finds no instance type for the placeholders",
            "Read Karpenter's words in the message; instance types, zones and capacity types are the usual causes.",
        ),
        Reason(
            "NodePoolLimitReached",
            _WAITS,
            "the pool is at its limits",
            "Raise the pool's limits, or wait until nodes are removed.",
            guide="sharing.md#caps",
        ),
        Reason(
            "TaintNotTolerated",
            _PERSON,
            "the placeholders do not tolerate a taint of the NodePool",
            "Remove the taint from the NodePool, or name it in the pool's taints.",
        ),
        Reason("FailedScheduling", _WAITS, "Karpenter cannot place the placeholders; the message has its words"),
        Reason(
            "BuiltInPluginNotRegistering",
            _PERSON,
            "the device plugin of the node's AMI (Bottlerocket) has registered no GPU",
            "See whether the AMI is the NVIDIA variant, and read the plugin's log on the node: journalctl -u "
            "nvidia-k8s-device-plugin.",
            guide="fast-start.md#bottlerocket",
        ),
        Reason("ImagesPulled", _ON, "all nodes have the images of capacity.prePull"),
        Reason("ImagesPulling", _WAITS, "nodes pull the images of capacity.prePull; the message names what is missing"),
        Reason(
            "PrePullFailed",
            _PERSON,
            "a node cannot pull an image of capacity.prePull",
            "Correct the image's name or tag, or give the node role access to its registry.",
            guide="fast-start.md#images-before-jobs",
        ),
        Reason("NodeNotRegistered", _WAITS, "Karpenter has not registered the node yet"),
        Reason(
            "NodeNotInitialized",
            _WAITS,
            "the node has its GPUs and Karpenter has not initialized it yet",
        ),
        Reason("NodeReady", _ON, "the node offers its GPUs"),
        Reason(
            "NodeQuarantined",
            _WAITS,
            "the node failed a validation and is quarantined",
            "It is released when it passes again; see gpu_revalidate.",
        ),
        Reason("NodeCordoned", _WAITS, "the node is cordoned and takes no job", "Uncordon the node or delete it."),
        Reason(
            "DriftedNodesHoldTheCap",
            _PERSON,
            "nodes of an older template leave no room under `limits.nodes`",
            "Raise limits.nodes as far as the message says and run gpu_lifecycle with replaceDrifted: idle; or do the "
            "other thing that the message names.",
            guide="sharing.md#when-there-is-no-room",
        ),
        Reason(
            "NodeRoleNotAdmitted",
            _PERSON,
            "an instance has been up for five minutes and is no node, and its role has no access entry",
            "Create the access entry of the node role with the command in the message, then clear the task: waiting "
            "instances keep trying to join.",
            guide="shared-clusters.md#prerequisites",
        ),
        Reason(
            "NodeDoesNotJoin",
            _RETRIED,
            "an instance runs and does not become a node",
            "Look at the instance's console output (aws ec2 get-console-output), at the access entry of its role, and "
            "at the route from its subnet to the cluster's endpoint.",
        ),
        Reason(
            "RungGivenUp",
            _ON,
            "a rung of the pool's ladder was given up, for the cause in the message; the next one begins",
            guide="capacity.md#when-a-rung-is-given-up",
        ),
        Reason(
            "TimeBoxOver",
            _ON,
            "the time box of a rung has passed, and EC2 has refused nothing in it",
            guide="capacity.md#when-a-rung-is-given-up",
        ),
        Reason(
            "LadderExhausted",
            _PERSON,
            "every rung of the pool's ladder was tried, and fewer nodes came than the pool needs",
            "Read what was tried in the message. Start another run when EC2 has capacity, or add rungs.",
            guide="capacity.md#the-fallback-ladder",
        ),
        Reason(
            "ClaimStays",
            _RETRIED,
            "a NodeClaim that was made for a rung that is over does not go, so the next rung may not begin",
            "Check whether Karpenter's controller is running.",
            guide="capacity.md#never-two-rungs-at-once",
        ),
        Reason("BurstFits", _ON, "pods of one share each bought as many nodes as computed"),
        Reason("BurstWaits", _WAITS, "pods of the burst are not running yet"),
        Reason(
            "BurstBoughtTooMany",
            _PERSON,
            "a burst of pods bought more nodes than the shares need",
            "Read the message, which says whether Karpenter ignored the NodeOverlay; the surplus nodes are removed.",
            guide="sharing.md#what-a-burst-of-pods-buys",
        ),
        Reason(
            "BurstBoughtTooFew",
            _PERSON,
            "a burst of pods fits on fewer nodes than computed: they advertise more GPUs than promised",
            "Compare the device plugin's config with the pool's sharing.",
        ),
        Reason(
            "ClaimChanged",
            _RETRIED,
            "NodeClaims that a burst had bought changed while they were about to be deleted; the next try continues "
            "with them",
        ),
    ),
)

DEVICE_PLUGIN = Section(
    "The device plugin",
    "tasks `capacity.…` and `prove_device_plugin`, gates `pool_capacity` and `device_plugin_proven`",
    (
        Reason("PluginProven", _ON, "a node runs this revision's pods and offers the expected GPUs"),
        Reason("PluginStarting", _WAITS, "the device plugin's pod is not Ready yet"),
        Reason("PodsOutdated", _WAITS, "no pod of the newest revision of the DaemonSet runs yet"),
        Reason(
            "NodeNotOurs",
            _WAITS,
            "the plugin's pod runs on a node that is none of this package's, which proves nothing",
        ),
        Reason("NoGPUNodes", _WAITS, "no node is left that could prove the device plugin"),
        Reason("ResourceNotRegistered", _WAITS, "the plugin runs and has not registered its GPUs yet"),
        Reason(
            "DevicePluginStarting",
            _WAITS,
            "the node has no GPUs yet: the plugin's pod is starting",
        ),
        Reason(
            "DevicePluginAbsent",
            _LASTS_PERSON,
            "the node has no pod of the device plugin",
            "Check the node's labels and the DaemonSet's selector, affinity and tolerations.",
        ),
        Reason(
            "DevicePluginFailedCreate",
            _LASTS_PERSON,
            "the device plugin's pod cannot be created; the message has the API server's words",
            "Remove the cause in the message (RuntimeClass, quota, admission).",
        ),
        Reason(
            "DevicePluginNotRegistering",
            _PERSON,
            "the device plugin's pod runs and registers no GPU",
            "Read the log of the device plugin's pod on this node (driver, config entry).",
        ),
        Reason(
            "DevicePluginMpsDaemon",
            _LASTS_PERSON,
            "the MPS control daemon on the node does not serve, so the plugin registers no GPU",
            "Read the daemon's log (kubectl logs of the pod that the message names, --previous where it restarts).",
        ),
        *(
            Reason(
                f"DevicePlugin{kubelet}",
                _LASTS_PERSON,
                f"the device plugin's pod waits with the kubelet's reason `{kubelet}`",
                "Read the message and the log of the device plugin's pod on this node.",
            )
            for kubelet in (
                *("CrashLoopBackOff", "CreateContainerConfigError", "CreateContainerError", "ErrImageNeverPull"),
                *("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "RunContainerError"),
            )
        ),
    ),
)
