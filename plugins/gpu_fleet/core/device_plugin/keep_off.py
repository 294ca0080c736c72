"""How a device plugin of another owner is described, and how it is kept off our nodes. Pure."""

from __future__ import annotations

import json

from gpu_fleet.core.device_plugin.detect import DaemonSetPlugin, Evidence
from gpu_fleet.core.kubernetes.names import LABEL_DEVICE_PLUGIN
from gpu_fleet.core.kubernetes.node_matching import LABEL_NO_OPERANDS

#: The API group and the kinds that configure what NVIDIA's GPU Operator runs where.
OPERATOR_GROUP = "nvidia.com"
OPERATOR_KINDS = ("ClusterPolicy", "GPUCluster", "NVIDIADriver")


def describe(plugin: DaemonSetPlugin) -> str:
    """What a plugin is, and the evidence for it."""
    match plugin.found.evidence:
        case Evidence.IMAGE:
            return f"device plugin, image {plugin.found.image}"
        case Evidence.FOLDER:
            return f"mounts the kubelet's device-plugin folder, image {plugin.found.image}"
        case Evidence.PARENT:
            return f"mounts a parent of the kubelet's device-plugin folder, image {plugin.found.image}"


def keep_off(plugin: DaemonSetPlugin) -> str:
    """What its owner has to change so that it does not run on our nodes; a command to be pasted."""
    if plugin.owner.startswith(OPERATOR_KINDS):
        return operator_remedy(plugin.owner)
    required = ((plugin.pod.get("affinity") or {}).get("nodeAffinity") or {}).get(
        "requiredDuringSchedulingIgnoredDuringExecution"
    ) or {}
    not_ours = {"key": LABEL_DEVICE_PLUGIN, "operator": "DoesNotExist"}
    terms = [
        {**term, "matchExpressions": [*(term.get("matchExpressions") or []), not_ours]}
        for term in required.get("nodeSelectorTerms") or [{}]
    ]
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}
    patch = json.dumps({"spec": {"template": {"spec": {"affinity": affinity}}}}, separators=(",", ":"))
    made_by = f" in its owner {plugin.owner}" if plugin.owner else ""
    vouch = ""
    if plugin.found.evidence is Evidence.FOLDER:
        vouch = f"; or, if it certainly serves no nvidia.com/gpu, name it in devicePlugin.coexistsWith: [{plugin.ref}]"
    return (
        f"restrict its node affinity{made_by}: kubectl -n {plugin.namespace} patch daemonset {plugin.name} --type "
        f"merge -p '{patch}'; or remove its toleration of the pools' taints{vouch}"
    )


def operator_remedy(owner: str) -> str:
    """How the spec, or the owner of the object that configures the operator, keeps it off our nodes."""
    switch = f" or set spec.devicePlugin.enabled: false in {owner}" if owner.startswith("ClusterPolicy") else ""
    return (
        f'keep the operator off our nodes with nodePools[].labels: {{{LABEL_NO_OPERANDS}: "false"}} in the spec{switch}'
    )
