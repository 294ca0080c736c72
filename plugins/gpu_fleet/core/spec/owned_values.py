"""Helm values of the user that contradict what the spec owns: each is refused with the field to use instead.

Extra values are merged last, so one of these would silently override the spec, on which gates, reports and teardown
rely. ``null`` counts like a value: Helm then deletes the key
(https://helm.sh/docs/chart_template_guide/values_files/#deleting-a-default-key).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from gpu_fleet.core.spec.problems import Problem, shortened

if TYPE_CHECKING:
    from gpu_fleet.core.spec.cluster import ClusterSpec

Path = tuple[str, ...]

_POOLS = "the plugin must run only on the nodes of nodePools"
#: Of the chart nvidia-device-plugin (NVIDIA/k8s-device-plugin v0.20.0 deployments/helm/nvidia-device-plugin).
#: Path of the value -> what is wrong with setting it, what to write instead.
PLUGIN_VALUES: dict[Path, tuple[str, str]] = {
    ("config",): ("the plugin's configs follow from the pools", "remove it; set nodePools[].sharing"),
    ("nodeSelector",): (_POOLS, "remove it; set devicePlugin.manage: false to place a plugin yourself"),
    ("affinity",): (_POOLS, "remove it; set devicePlugin.manage: false to place a plugin yourself"),
    ("tolerations",): ("the tolerations follow from the pools' taints", "remove it; set nodePools[].taints"),
    ("runtimeClassName",): ("the pods run with RuntimeClass nvidia, which the rollout waits for", "remove it"),
    ("deviceListStrategy",): ("it is a field of the spec", "remove it; set devicePlugin.deviceListStrategy"),
    ("mps",): ("MPS follows from the pools", "remove it; set nodePools[].sharing: {mode: mps, replicas: 4}"),
    # Environment of the container, which wins over the config file (api/config/v1/flags.go).
    ("migStrategy",): ("the configs say migStrategy none: GPUs are counted whole", "remove it"),
    ("failOnInitError",): ("the configs say true: a plugin without GPUs must not look healthy", "remove it"),
    ("namespaceOverride",): ("the plugin is looked for in its namespace", "remove it; set devicePlugin.namespace"),
    ("devicePlugin",): ("the release would install no plugin", "remove it; set devicePlugin.manage: false for none"),
}

#: Of the chart karpenter (aws/karpenter-provider-aws v1.14.1 charts/karpenter).
KARPENTER_VALUES: dict[Path, tuple[str, str]] = {
    ("settings",): ("settings have a field of their own", "move it to karpenter.settings"),
    ("replicas",): ("it is a field of the spec", "remove it; set karpenter.replicas"),
    ("nameOverride",): (
        "the controller is found by its label app.kubernetes.io/name=karpenter",
        "remove it; fullnameOverride renames the objects and keeps the label",
    ),
}
#: Mappings that the package needs: only ``null``, or another type, is refused.
KARPENTER_PARTS: tuple[Path, ...] = (("controller",), ("serviceAccount",), ("controller", "resources"))
PLUGIN_PARTS: tuple[Path, ...] = (("image",), ("gfd",), ("updateStrategy",))

#: Environment that the chart sets from ``settings``; a second entry of a name wins
#: (charts/karpenter/templates/deployment.yaml: ``controller.env`` comes last).
_ENVIRONMENT: dict[str, str] = {
    "CLUSTER_NAME": "cluster.name",
    "INTERRUPTION_QUEUE": "karpenter.interruptionQueue",
    "FEATURE_GATES": "karpenter.settings.featureGates",
}
_REGION_VARIABLES = ("AWS_REGION", "AWS_DEFAULT_REGION")


def _set(values: Any, path: Path) -> bool:
    """Whether the values have something at this path, including ``null``."""
    for part in path:
        if not isinstance(values, Mapping) or part not in values:
            return False
        values = values[part]
    return True


def _at(values: Any, path: Path) -> Any:
    for part in path:
        values = values[part]
    return values


def _owned(
    field: str, values: Mapping[str, Any], owned: Mapping[Path, tuple[str, str]], parts: tuple[Path, ...]
) -> Iterator[Problem]:
    for path, (why, remedy) in owned.items():
        if _set(values, path):
            yield Problem(
                f"{field}.{'.'.join(path)}", f"{shortened(_at(values, path))} contradicts the spec: {why}", remedy
            )
    for path in parts:
        if _set(values, path) and not isinstance(_at(values, path), Mapping):
            yield Problem(
                f"{field}.{'.'.join(path)}",
                f"{shortened(_at(values, path))} would delete what the package and the chart set there",
                "remove it, or write a mapping with the keys to change",
            )


def plugin_values_do_not_contradict(spec: ClusterSpec) -> Iterator[Problem]:
    values = spec.device_plugin.values
    yield from _owned("devicePlugin.values", values, PLUGIN_VALUES, PLUGIN_PARTS)
    gfd = values.get("gfd")
    # The subchart's condition is nfd.enabled, then gfd.enabled (Chart.yaml); its worker does not tolerate GPU taints.
    nfd = values.get("nfd")
    if (isinstance(gfd, Mapping) and gfd.get("enabled") is True) or (isinstance(nfd, Mapping) and nfd.get("enabled")):
        worker = nfd.get("worker") if isinstance(nfd, Mapping) else None
        tainted = [pool.name for pool in spec.node_pools if pool.taints]
        if tainted and not (isinstance(worker, Mapping) and worker.get("tolerations")):
            yield Problem(
                "devicePlugin.values.gfd.enabled" if gfd else "devicePlugin.values.nfd.enabled",
                "installs Node Feature Discovery, whose worker does not tolerate the taints of "
                f"{', '.join(tainted)}: the nodes would never get their labels",
                "set devicePlugin.values.nfd.worker.tolerations too, or leave it out",
            )


def karpenter_values_do_not_contradict(spec: ClusterSpec) -> Iterator[Problem]:
    values = spec.karpenter.values
    yield from _owned("karpenter.values", values, KARPENTER_VALUES, KARPENTER_PARTS)
    controller = values.get("controller")
    entries = controller.get("env") if isinstance(controller, Mapping) else None
    for index, entry in enumerate(entries if isinstance(entries, list | tuple) else ()):
        name = entry.get("name") if isinstance(entry, Mapping) else None
        field = f"karpenter.values.controller.env[{index}]"
        if name in _ENVIRONMENT:
            yield Problem(field, f"{name} would override the spec", f"remove it; set {_ENVIRONMENT[name]}")
        elif name in _REGION_VARIABLES and entry.get("value") != spec.region:
            yield Problem(field, f"{name} is not aws.region {spec.region}", f"remove it, or write {spec.region}")


def settings_do_not_contradict(spec: ClusterSpec) -> Iterator[Problem]:
    settings = spec.karpenter.settings
    for key, value, field in (
        ("clusterName", spec.cluster.name, "cluster.name"),
        ("interruptionQueue", spec.karpenter.interruption_queue, "karpenter.interruptionQueue"),
    ):
        if key in settings and settings[key] != value:
            yield Problem(
                f"karpenter.settings.{key}",
                f"{shortened(settings[key])} contradicts {field}, which is {shortened(value)}",
                f"remove it; the package sets {key} from {field}",
            )
    gates = settings.get("featureGates", {})
    if not isinstance(gates, Mapping):
        yield Problem(
            "karpenter.settings.featureGates",
            f"{shortened(gates)} would delete the chart's feature gates, without which it cannot be installed",
            "write a mapping: {spotToSpotConsolidation: true}",
        )
    else:
        for gate, state in gates.items():
            if not isinstance(state, bool):
                yield Problem(
                    f"karpenter.settings.featureGates.{gate}",
                    f"{shortened(state)} is not the state of a feature gate",
                    "write true or false",
                )


def spot_has_a_queue(spec: ClusterSpec) -> Iterator[Problem]:
    """Karpenter starts its interruption controller only with a queue (aws/karpenter-provider-aws v1.14.1
    pkg/controllers/controllers.go): without one it reads no spot interruption notices.
    """
    if not spec.karpenter.manage or spec.karpenter.interruption_queue != "":
        return
    spot = [pool.name for pool in spec.node_pools if pool.manage and "spot" in pool.capacity_types]
    if spot:
        yield Problem(
            "karpenter.interruptionQueue",
            f"{', '.join(spot)} may buy spot instances, and without a queue Karpenter reads no interruption notices: "
            "their nodes disappear with all jobs on them",
            "write the queue's name; null accepts it; or set capacityTypes: [on-demand]",
        )


def interruptions_have_a_queue_of_their_own(spec: ClusterSpec) -> Iterator[Problem]:
    """A message in SQS goes to one reader: two on one queue would take each other's messages."""
    ours, karpenters = spec.interruptions.queue, spec.karpenter.interruption_queue
    if ours is not None and ours == karpenters:
        yield Problem(
            "interruptions.queue",
            f"{ours} is Karpenter's queue (karpenter.interruptionQueue): each message would reach only one of the two",
            "create a queue of its own, see include/cloudformation/interruptions.yaml",
        )


def the_handler_can_act(spec: ClusterSpec) -> Iterator[Problem]:
    """Karpenter without a queue starts no interruption controller; with one it acts, whatever this file says."""
    chosen, karpenters = spec.interruptions.handler, spec.karpenter.interruption_queue
    if chosen == "karpenter" and not karpenters and spec.karpenter.manage:
        yield Problem(
            "interruptions.handler",
            "Karpenter handles no interruptions without karpenter.interruptionQueue",
            "write the queue's name there, or handler: gpu-fleet",
        )
    if chosen == "gpu-fleet" and karpenters:
        yield Problem(
            "interruptions.handler",
            f"Karpenter reads the queue {karpenters} and handles its nodes' interruptions itself",
            "write handler: karpenter, or karpenter.interruptionQueue: null",
        )


Rule = Callable[["ClusterSpec"], Iterator[Problem]]
OWNED_VALUES: tuple[Rule, ...] = (
    settings_do_not_contradict,
    plugin_values_do_not_contradict,
    karpenter_values_do_not_contradict,
    spot_has_a_queue,
    interruptions_have_a_queue_of_their_own,
    the_handler_can_act,
)
