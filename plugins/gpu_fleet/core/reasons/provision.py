"""Reasons of preflight and of Karpenter and its objects."""

from __future__ import annotations

from gpu_fleet.core.reasons.blocks import BLOCKS
from gpu_fleet.core.reasons.reason import Effect, Reason, Section

_WAITS, _LASTS = Effect.WAITS, Effect.WAITS_THEN_RETRIED
_RETRIED, _PERSON, _ON = Effect.RETRIED, Effect.PERSON, Effect.GOES_ON

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
            guide="shared-clusters.md#prerequisites",
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
            guide="sharing.md#what-a-burst-of-pods-buys",
        ),
    ),
)

PREFLIGHT = Section(
    "Preflight",
    "tasks `preflight.…`, gates `cluster_active`, `karpenter_nodes` and `capacity_blocks`",
    (
        *BLOCKS,
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
            guide="shared-clusters.md#prerequisites",
        ),
        Reason(
            "PrerequisiteMissing",
            _PERSON,
            "the account or the cluster lacks what nodes or Karpenter need",
            "Create what the message lists, with its commands.",
            guide="shared-clusters.md#prerequisites",
        ),
        Reason(
            "NeighbourConflict",
            _PERSON,
            "something that others manage and the spec cannot both serve the same GPUs",
            "Do one of the things that the message names.",
            guide="device-plugins.md",
        ),
        Reason(
            "ForeignDevicePlugin",
            _PERSON,
            "a device plugin that others manage would run on our nodes",
            "Keep it off our nodes as the message says, or set devicePlugin.manage: false.",
            guide="device-plugins.md#theirs-on-our-nodes-is-refused",
        ),
        Reason(
            "NoDevicePlugin",
            _PERSON,
            "no DaemonSet would run on the nodes of an AL2023 pool: they would be paid for and never offer a GPU",
            "Correct the selectors that the message names, or set devicePlugin.manage: true.",
            guide="device-plugins.md#when-the-plugin-belongs-to-others",
        ),
        Reason(
            "PoolWithoutLabel",
            _PERSON,
            "nodes of a pool with `manage: false` lack the label by which the device plugin finds its nodes",
            "Add the label to the NodePool's template, as the message says.",
            guide="device-plugins.md#ours-never-runs-on-their-nodes",
        ),
        Reason(
            "NeighboursUnknown",
            _PERSON,
            "what others run on GPU nodes could not be read",
            "Grant the permissions that the message names.",
            guide="device-plugins.md#theirs-on-our-nodes-is-refused",
        ),
        Reason(
            "SharingNotConfigured",
            _PERSON,
            "a shared pool is served by a plugin without a config file, such as the static DaemonSet",
            "Give the plugin a config, or let this package manage it.",
            guide="device-plugins.md#when-the-plugin-belongs-to-others",
        ),
        Reason(
            "ConfigEntryMissing",
            _PERSON,
            "the plugin's ConfigMap lacks the entry that the pool's nodes name by their label; its pods would crash",
            "Add the entry to the ConfigMap.",
            guide="device-plugins.md#when-the-plugin-belongs-to-others",
        ),
        Reason(
            "ConfigEntryDiffers",
            _PERSON,
            "the ConfigMap's entry shares otherwise than `sharing` promises",
            "Correct the entry or the pool's sharing.",
            guide="device-plugins.md#when-the-plugin-belongs-to-others",
        ),
    ),
)
