"""Names, labels and annotations that the package writes or relies on; the same spec always gives the same names."""

from __future__ import annotations

import hashlib

# --- our own -------------------------------------------------------------------------------------------------------
DOMAIN = "gpu-fleet.io"
FIELD_MANAGER = "gpu-fleet"
LABEL_CLUSTER = f"{DOMAIN}/cluster"
LABEL_POOL = f"{DOMAIN}/pool"
LABEL_COMPONENT = f"{DOMAIN}/component"  # placeholder | probe | turn | ledger | manifest
COMPONENT_PROBE = "probe"
COMPONENT_PLACEHOLDER = "placeholder"
COMPONENT_HOLD = "hold"
COMPONENT_BURST = "burst"
COMPONENT_HEADROOM = "headroom"
COMPONENT_PRE_PULL = "pre-pull"
LABEL_RUN = f"{DOMAIN}/run"  # short_hash of dag_id + run_id
ANNOTATION_RUN = f"{DOMAIN}/dag-run"  # "<dag_id>/<run_id>" in words
ANNOTATION_PROTECTED_BY = f"{DOMAIN}/protected-by"  # the run that keeps Karpenter from removing a node
LABEL_STANDING = f"{DOMAIN}/standing"  # on nodes that existed before the placeholders, which keep away from them
STANDING = "true"
ANNOTATION_RUNG = f"{DOMAIN}/rung"  # on placeholders: which rung of the pool's ladder they ask for, as a digest
LABEL_DEVICE_PLUGIN = f"{DOMAIN}/device-plugin"  # on nodes that our device plugin may run on, and no others
SERVED = "true"
BUILT_IN = "built-in"  # the same label on nodes whose AMI brings a device plugin, which ours keeps off
ANNOTATION_CORDONED_BY = f"{DOMAIN}/cordoned-by"  # the run whose drain cordoned a node, or CORDONED_FOR + an event's id
CORDONED_FOR = "interruption/"  # begins the value where an interruption notice is the cause; no DAG id has a '/'
ANNOTATION_INTERRUPTION = f"{DOMAIN}/interruption"  # JSON: kind, instance, at, deadline, action, event, seen
ANNOTATION_HANDLED = f"{DOMAIN}/interruption-handled-by"  # JSON: the run that drains an interrupted node, and for what
ANNOTATION_DRAINED_BY = f"{DOMAIN}/drained-by"  # the run that a person started to empty a node, which stays cordoned
ANNOTATION_ON_REBALANCE = f"{DOMAIN}/on-rebalance"  # on pods of users: evict, signal or nothing
ANNOTATION_FROZEN_LIMITS = f"{DOMAIN}/limits-before-freeze"
ANNOTATION_HELD = f"{DOMAIN}/held-while-proving"  # JSON: what limits.nodes of a NodePool was, and the run that holds it
ANNOTATION_FROZEN_BY = f"{DOMAIN}/frozen-by"  # the run whose teardown froze a NodePool
ANNOTATION_EVICTED_FOR = f"{DOMAIN}/evicted-for"  # the run whose drain has evicted pods from a NodePool's nodes
TAINT_QUARANTINED = f"{DOMAIN}/quarantined"  # NoSchedule, value: the reason; on nodes that failed a validation
TAINT_UNPROVEN = f"{DOMAIN}/unproven"  # NoSchedule; startup taint of gated pools, which only a proof removes
CONDITION_PROVEN = f"{DOMAIN}/Proven"  # of nodes of gated pools: whether, when and by which run they were proven
ANNOTATION_QUARANTINED = TAINT_QUARANTINED  # JSON: reason, message, run, at, cordoned
SYSTEM_NAMESPACE = "gpu-fleet-system"  # the cluster lock, placeholders
VALIDATION_NAMESPACE = "gpu-fleet-validation"  # probe pods
TURN_CONFIG_MAP = "turn"  # the record of the cluster lock
PLACEHOLDER_PRIORITY_CLASS = "gpu-fleet-placeholder"

# --- NVIDIA ----------------------------------------------------------------------------------------------------------
GPU_RESOURCE = "nvidia.com/gpu"
LABEL_GPU_PRESENT = "nvidia.com/gpu.present"
LABEL_PLUGIN_CONFIG = "nvidia.com/device-plugin.config"
LABEL_MPS_CAPABLE = "nvidia.com/mps.capable"  # the MPS control daemon's node selector; GFD would set it too
GPU_TAINT_KEY = "nvidia.com/gpu"
RUNTIME_CLASS_NAME = "nvidia"
DEVICE_PLUGIN_RELEASE = "nvidia-device-plugin"
DEVICE_PLUGIN_NAMESPACE = "nvidia-device-plugin"

# --- Karpenter -------------------------------------------------------------------------------------------------------
LABEL_NODE_POOL = "karpenter.sh/nodepool"
LABEL_NODE_CLASS = "karpenter.k8s.aws/ec2nodeclass"  # of NodeClaims and Nodes: the name of their EC2NodeClass
LABEL_CAPACITY_TYPE = "karpenter.sh/capacity-type"
LABEL_RESERVATION_ID = "karpenter.k8s.aws/capacity-reservation-id"  # on reserved nodes
LABEL_RESERVATION_TYPE = "karpenter.k8s.aws/capacity-reservation-type"  # likewise: default or capacity-block
RESERVATION_DEFAULT, RESERVATION_BLOCK = "default", "capacity-block"
LABEL_INITIALIZED = "karpenter.sh/initialized"
LABEL_REGISTERED = "karpenter.sh/registered"
ANNOTATION_DO_NOT_DISRUPT = "karpenter.sh/do-not-disrupt"
ANNOTATION_TERMINATION_TIME = "karpenter.sh/nodeclaim-termination-timestamp"  # when its pods' time is over
TAINT_DISRUPTED = "karpenter.sh/disrupted"
TAINT_UNREGISTERED = "karpenter.sh/unregistered"
FINALIZER_TERMINATION = "karpenter.sh/termination"
DISCOVERY_TAG = "karpenter.sh/discovery"
TAG_NODE_POOL = "karpenter.sh/nodepool"
TAG_NODE_CLAIM = "karpenter.sh/nodeclaim"
KARPENTER_RELEASE = "karpenter"
KARPENTER_CRD_RELEASE = "karpenter-crd"
KARPENTER_NAMESPACE = "kube-system"
KARPENTER_SELECTOR = "app.kubernetes.io/name=karpenter"  # of the controller's Deployment and pods

# --- EKS -------------------------------------------------------------------------------------------------------------
LABEL_NODE_GROUP = "eks.amazonaws.com/nodegroup"  # on the nodes of a managed node group

# --- Kubernetes ------------------------------------------------------------------------------------------------------
LABEL_HOSTNAME = "kubernetes.io/hostname"
LABEL_INSTANCE_TYPE = "node.kubernetes.io/instance-type"
LABEL_REGION = "topology.kubernetes.io/region"
LABEL_ZONE = "topology.kubernetes.io/zone"
TAINT_UNSCHEDULABLE = "node.kubernetes.io/unschedulable"  # of every cordoned node, by the node lifecycle controller


def owned_tag(cluster_name: str) -> str:
    """The EC2 tag key that marks an instance as a cluster's (value ``owned``)."""
    return f"kubernetes.io/cluster/{cluster_name}"


def short_hash(*parts: str, length: int = 10) -> str:
    """A short, stable, DNS-safe digest of the parts, for names that must be deterministic and within length limits."""
    digest = hashlib.sha256("\x00".join(parts).encode()).hexdigest()
    return digest[:length]


def run_label(dag_id: str, run_id: str) -> str:
    """The value of :data:`LABEL_RUN` of a Dag run."""
    return short_hash(dag_id, run_id)
