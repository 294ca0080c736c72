"""Reasons of the waits for capacity and for Karpenter: gates, the burst, preflight. Launches: ``core/aws``."""

from __future__ import annotations

from gpu_fleet.core.reasons.reason import Effect, Reason, Section

_WAITS, _LASTS, _LASTS_PERSON = Effect.WAITS, Effect.WAITS_THEN_RETRIED, Effect.WAITS_THEN_PERSON
_RETRIED, _PERSON, _ON = Effect.RETRIED, Effect.PERSON, Effect.GOES_ON

CAPACITY = Section(
    "The wait for capacity",
    "tasks `capacity.…`, gates `pool_capacity` and `burst`; a reason of a node names that node",
    (
        Reason("CapacityReady", _ON, "the pool has as many good nodes as it wants"),
        Reason(
            "NodesMissing",
            _LASTS,
            "wanted nodes are missing; after the wait, nodes were removed or cordoned between the wait and validation",
            "Start another run.",
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
        ),
        Reason(
            "TaintNotTolerated",
            _PERSON,
            "the placeholders do not tolerate a taint of the NodePool",
            "Remove the taint from the NodePool, or name it in the pool's taints.",
        ),
        Reason("FailedScheduling", _WAITS, "Karpenter cannot place the placeholders; the message has its words"),
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
        ),
        Reason(
            "NodeRoleNotAdmitted",
            _PERSON,
            "an instance has been up for five minutes and is no node, and its role has no access entry",
            "Create the access entry of the node role with the command in the message, then clear the task: waiting "
            "instances keep trying to join.",
            guide="shared-clusters.md",
        ),
        Reason(
            "NodeDoesNotJoin",
            _RETRIED,
            "an instance runs and does not become a node",
            "Look at the instance's console output (aws ec2 get-console-output), at the access entry of its role, and "
            "at the route from its subnet to the cluster's endpoint.",
        ),
        Reason("BurstFits", _ON, "pods of one share each bought as many nodes as computed"),
        Reason("BurstWaits", _WAITS, "pods of the burst are not running yet"),
        Reason(
            "BurstBoughtTooMany",
            _PERSON,
            "a burst of pods bought more nodes than the shares need",
            "Read the message, which says whether Karpenter ignored the NodeOverlay; the surplus nodes are removed.",
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

KARPENTER = Section(
    "Karpenter and its objects",
    "tasks `provision.…` and `rollout.…`, gates `karpenter_available`, `crds_established`, `node_class_ready`, "
    "`node_pool_ready` (which looks at the pool's NodeOverlay, too) and `karpenter_serves`",
    (
        Reason("KarpenterAvailable", _ON, "Karpenter's Deployment has the replicas that it wants"),
        Reason("KarpenterServes", _ON, "a pod of Karpenter is Ready"),
        Reason(
            "KarpenterRestarting",
            _WAITS,
            "no pod of Karpenter is Ready; two minutes after the task's first look it counts as dead",
        ),
        Reason(
            "KarpenterAbsent",
            _PERSON,
            "no Deployment wants a pod of Karpenter",
            "Install Karpenter, or correct karpenter.namespace.",
        ),
        Reason(
            "KarpenterWithoutCredentials",
            _PERSON,
            "the controller's container ends again and again, and its pod has no AWS credentials",
            "Create the pod identity association (or annotate the ServiceAccount for IRSA), then restart Karpenter's "
            "Deployment: credentials are given to pods when they are created.",
            guide="shared-clusters.md",
        ),
        Reason("DeploymentNotAvailable", _WAITS, "Karpenter's Deployment has fewer replicas than it wants"),
        Reason("DeploymentTerminating", _WAITS, "Karpenter's Deployment is being deleted"),
        Reason("ScaledToZero", _WAITS, "Karpenter is scaled to 0 replicas", "Scale its Deployment up."),
        Reason(
            "ProgressDeadlineExceeded",
            _RETRIED,
            "a Deployment has made no progress within its progressDeadlineSeconds",
            "Read its pods' states in the message.",
        ),
        Reason(
            "ReplicaFailure",
            _WAITS,
            "a Deployment's ReplicaSet cannot create pods; the message has the API server's words",
        ),
        Reason("CrdEstablished", _ON, "the API server serves the CustomResourceDefinition"),
        Reason("CrdNotFound", _WAITS, "a CustomResourceDefinition does not exist yet"),
        Reason(
            "CrdTerminating",
            _PERSON,
            "a CustomResourceDefinition is being deleted",
            "Wait until it is gone, then run again.",
        ),
        Reason("NoCrds", _WAITS, "no CustomResourceDefinition was named"),
        Reason(
            "NamesNotAccepted",
            _PERSON,
            "another CustomResourceDefinition has the same names",
            "Remove one of the two.",
        ),
        Reason("NotEstablished", _WAITS, "the API server does not serve the CustomResourceDefinition yet"),
        Reason(
            "NoConditions",
            _LASTS,
            "Karpenter has reported nothing on the object",
            "Check whether Karpenter's controller runs, and whether nodeClassRef names a class of its provider.",
        ),
        Reason("StatusOutdated", _WAITS, "the object's status is of an earlier generation"),
        Reason("NotReady", _WAITS, "Karpenter has not summed up the object's conditions yet"),
        Reason("NodeClassReady", _ON, "the EC2NodeClass is Ready"),
        Reason(
            "NodeClassTerminating",
            _PERSON,
            "the EC2NodeClass is being deleted",
            "Wait until it is gone, then run again.",
        ),
        Reason("NodePoolReady", _ON, "the NodePool is Ready"),
        Reason(
            "NodePoolTerminating",
            _PERSON,
            "the NodePool is being deleted",
            "Wait until it is gone, then run again.",
        ),
        Reason(
            "NodePoolValidationFailed",
            _PERSON,
            "Karpenter refuses the NodePool; the message has its words",
            "Correct the pool in the cluster file.",
        ),
        Reason("NodeOverlayReady", _ON, "the NodeOverlay is Ready"),
        Reason(
            "NodeOverlayTerminating",
            _PERSON,
            "the NodeOverlay is being deleted",
            "Wait until it is gone, then run again.",
        ),
        Reason(
            "NodeOverlayIgnored",
            _RETRIED,
            "Karpenter has reported nothing on the NodeOverlay: its feature gate NodeOverlay is off",
            "Switch FEATURE_GATES in Karpenter's Deployment on, or set karpenter.nodeOverlays: false.",
        ),
        Reason(
            "NodeOverlayInvalid",
            _PERSON,
            "Karpenter refuses the NodeOverlay; the message has its words",
            "Correct what the message names, or set karpenter.nodeOverlays: false.",
        ),
        Reason(
            "OverlayConflict",
            _PERSON,
            "another NodeOverlay of the same weight sets `nvidia.com/gpu` for the same nodes",
            "Change that NodeOverlay's weight or requirements, or set karpenter.nodeOverlays: false.",
        ),
    ),
)

PREFLIGHT = Section(
    "Preflight",
    "tasks `preflight.…`, gates `cluster_active` and `karpenter_nodes`",
    (
        Reason("ClusterActive", _ON, "the EKS cluster is ACTIVE"),
        *(
            Reason(
                f"Cluster{status.capitalize()}",
                _WAITS,
                f"the EKS cluster is {status}",
            )
            for status in ("CREATING", "UPDATING", "PENDING")
        ),
        *(
            Reason(
                f"Cluster{status.capitalize()}",
                _PERSON,
                f"the EKS cluster is {status}",
                "Create the cluster, or correct cluster.name, aws.region and the account of the connection.",
            )
            for status in ("DELETING", "FAILED")
        ),
        Reason("ClusterStatusUnknown", _WAITS, "the EKS cluster has a status that this version does not know"),
        Reason(
            "ClusterNotFound",
            _PERSON,
            "there is no EKS cluster of this name",
            "Check cluster.name, aws.region and the account of aws.connection.",
        ),
        Reason("ClusterNotActive", _RETRIED, "the EKS cluster has no API endpoint yet"),
        Reason("NoEndpoint", _WAITS, "the EKS cluster is ACTIVE and shows no API endpoint yet"),
        Reason(
            "ClusterVersionDiffers",
            _PERSON,
            "the cluster runs another version of Kubernetes than the spec says",
            "Correct cluster.version: which Karpenter and AMI fit is judged by it.",
        ),
        Reason("KarpenterNodesReady", _ON, "nodes exist that can run Karpenter"),
        Reason("NodeGroupJoining", _WAITS, "nodes that can run Karpenter are being created by a node group"),
        Reason(
            "NoNodesForKarpenter",
            _PERSON,
            "no node can run Karpenter, and none is being created",
            "Create the nodes that the message asks for.",
        ),
        Reason(
            "PrerequisiteMissing",
            _PERSON,
            "the account or the cluster lacks what nodes or Karpenter need",
            "Create what the message lists, with its commands.",
            guide="shared-clusters.md",
        ),
        Reason(
            "NeighbourConflict",
            _PERSON,
            "something that others manage and the spec cannot both serve the same GPUs",
            "Do one of the things that the message names.",
            guide="shared-clusters.md#other-device-plugins",
        ),
        Reason(
            "ForeignDevicePlugin",
            _PERSON,
            "a device plugin that others manage would run on our nodes",
            "Keep it off our nodes as the message says, or set devicePlugin.manage: false.",
            guide="shared-clusters.md#other-device-plugins",
        ),
        Reason(
            "NoDevicePlugin",
            _PERSON,
            "no DaemonSet would run on the nodes of an AL2023 pool: they would be paid for and never offer a GPU",
            "Correct the selectors that the message names, or set devicePlugin.manage: true.",
            guide="shared-clusters.md#other-device-plugins",
        ),
        Reason(
            "PoolWithoutLabel",
            _PERSON,
            "nodes of a pool with `manage: false` lack the label by which the device plugin finds its nodes",
            "Add the label to the NodePool's template, as the message says.",
        ),
        Reason(
            "NeighboursUnknown",
            _PERSON,
            "what others run on GPU nodes could not be read",
            "Grant the permissions that the message names.",
        ),
        Reason(
            "SharingNotConfigured",
            _PERSON,
            "a shared pool is served by a plugin without a config file, such as the static DaemonSet",
            "Give the plugin a config, or let this package manage it.",
            guide="shared-clusters.md#other-device-plugins",
        ),
        Reason(
            "ConfigEntryMissing",
            _PERSON,
            "the plugin's ConfigMap lacks the entry that the pool's nodes name by their label; its pods would crash",
            "Add the entry to the ConfigMap.",
            guide="shared-clusters.md#other-device-plugins",
        ),
        Reason(
            "ConfigEntryDiffers",
            _PERSON,
            "the ConfigMap's entry shares otherwise than `sharing` promises",
            "Correct the entry or the pool's sharing.",
            guide="shared-clusters.md#other-device-plugins",
        ),
    ),
)
