"""Reasons for which a node fails before anything is run on it: ``core/validation/node.py``."""

from __future__ import annotations

from functools import partial

from gpu_fleet.core.reasons.reason import Effect, Reason, Section

_WEBHOOKS = "shared-clusters.md#admission-webhooks"
_PLUGINS = "device-plugins.md"

_fails = partial(Reason, effect=Effect.NODE_FAILS)
_in_node = partial(Reason, effect=Effect.NODE_FAILS, in_node=True)

NODE = Section(
    "Nodes",
    "checks `node` to `allocatable`, before anything is run on the node; in reports and in the tasks `validation.…`",
    (
        _fails(
            "NodeVanished",
            found="the node was removed, perhaps during the probe",
            remedy="Look for a spot interruption or a manual deletion, then start another run.",
        ),
        _in_node(
            "NodeNotReady",
            found="its kubelet is not Ready",
            remedy="Look at the node's conditions and its kubelet (kubectl describe node); replace the node if it "
            "stays NotReady.",
        ),
        _fails(
            "RuntimeClassMissing",
            found="there is no RuntimeClass `nvidia`",
            remedy="Run gpu_lifecycle, which creates the RuntimeClass, and find out who deleted it.",
        ),
        _in_node(
            "LabelMissing",
            found="the node lacks a label that the pool promises and its NodeClaim was launched with",
            remedy="A person or a controller removed the label, or the NodePool has changed: run gpu_lifecycle, then "
            "replace the node.",
        ),
        _in_node(
            "TaintMissing",
            found="the node lacks a taint that the pool promises and its NodeClaim was launched with",
            remedy="A person or a controller removed the taint, or the NodePool has changed: run gpu_lifecycle, then "
            "replace the node.",
        ),
        _in_node(
            "XidError",
            found="the driver reported an XID that calls for a repair",
            remedy="Look the XID up in NVIDIA's list. A hardware error repeats: replace the node (delete its "
            "NodeClaim).",
        ),
        _in_node(
            "HardwareNotReady",
            found="the node monitoring agent reports another fault of the GPUs, NVLink or fabric "
            "(condition `AcceleratedHardwareReady`)",
            remedy="Replace the node (delete its NodeClaim).",
        ),
        _fails(
            "SecondDevicePlugin",
            found="two device plugins compete for the node; the message names the other one",
            remedy="Keep the other plugin off the node as the message says (or set devicePlugin.manage: false), then "
            "restart the plugin that stays.",
            guide=_PLUGINS,
        ),
        _in_node(
            "MpsDaemonAbsent",
            found="the MPS control daemon does not serve, so no GPU is registered",
            remedy="Look at the control daemon's DaemonSet, at its pod's log, and at the node's label "
            "nvidia.com/mps.capable.",
        ),
        _in_node(
            "DevicePluginNotRegistered",
            found="the node offers no GPUs; the message says whether the plugin's pod exists",
            remedy="Read the log of the device plugin's pod on this node; without a pod, check the DaemonSet's "
            "nodeSelector and tolerations.",
        ),
        _in_node(
            "DevicePluginNotReady",
            found="the node still offers GPUs, but the device plugin's pod is in trouble",
            remedy="Read the log of the device plugin's pod on this node; it may be about to lose its GPUs.",
        ),
        _fails(
            "InjectedContainerNotReady",
            found="a container that an admission webhook added to a pod of the device plugin is not ready; the message "
            "names container, pod and cause",
            remedy="Exempt the plugin's namespace from the webhook, or repair the container that the message names. "
            "Neither the plugin's release nor the node is at fault.",
            guide=_WEBHOOKS,
        ),
        _in_node(
            "GpuLost",
            found="devices are unhealthy, or the node has fewer GPUs than EC2 says",
            remedy="A lost GPU does not come back: replace the node (delete its NodeClaim).",
        ),
        _in_node(
            "SharingNotApplied",
            found="a node of a shared pool offers its physical GPUs only",
            remedy="The plugin runs without the pool's sharing config: check the node's label "
            "nvidia.com/device-plugin.config and the release's ConfigMap; run gpu_lifecycle.",
        ),
        _in_node(
            "AllocatableMismatch",
            found="the node offers another number of replicas than promised",
            remedy="Restart the plugin's pod on this node, and compare its config with the other nodes'.",
        ),
        _fails(
            "GpusGone",
            found="the device plugin withdrew the GPUs (in reports of earlier versions)",
            remedy="Read the device plugin's log on this node.",
        ),
    ),
)
