"""Helm values that would win over the spec, and spot capacity of which nobody hears that it ends."""

from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core.spec import ClusterSpec, SpecErrors
from gpu_fleet.core.spec.owned_values import KARPENTER_VALUES, PLUGIN_VALUES
from tests.unit.core.specs import demo_spec

#: situation -> changes, field, part of the message, part of the remedy
CONTRADICTIONS: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "configs of one's own": (
        {"devicePlugin__values": {"config": {"map": {"default": "version: v1"}}}},
        "devicePlugin.values.config",
        "follow from the pools",
        "nodePools[].sharing",
    ),
    "no configs": ({"devicePlugin__values": {"config": None}}, "devicePlugin.values.config", "None", "sharing"),
    "a part of the configs": (
        {"devicePlugin__values": {"config": {"default": "time-slicing-4"}}},
        "devicePlugin.values.config",
        "time-slicing-4",
        "sharing",
    ),
    "another node selector": (
        {"devicePlugin__values": {"nodeSelector": {"a": "b"}}},
        "devicePlugin.values.nodeSelector",
        "the nodes of nodePools",
        "manage: false",
    ),
    "no node selector": (
        {"devicePlugin__values": {"nodeSelector": None}},
        "devicePlugin.values.nodeSelector",
        "None",
        "remove it",
    ),
    "the chart's affinity": (
        {"devicePlugin__values": {"affinity": None}},
        "devicePlugin.values.affinity",
        "",
        "remove",
    ),
    "no tolerations": (
        {"devicePlugin__values": {"tolerations": []}},
        "devicePlugin.values.tolerations",
        "taints",
        "nodePools[].taints",
    ),
    "no RuntimeClass": (
        {"devicePlugin__values": {"runtimeClassName": None}},
        "devicePlugin.values.runtimeClassName",
        "RuntimeClass nvidia",
        "remove it",
    ),
    "a device list strategy beside the field": (
        {"devicePlugin__values": {"deviceListStrategy": "cdi-cri"}},
        "devicePlugin.values.deviceListStrategy",
        "cdi-cri",
        "set devicePlugin.deviceListStrategy",
    ),
    "MPS without the host's processes": (
        {"devicePlugin__values": {"mps": {"enableHostPID": False}}},
        "devicePlugin.values.mps",
        "MPS follows",
        "mode: mps",
    ),
    "MIG": ({"devicePlugin__values": {"migStrategy": "single"}}, "devicePlugin.values.migStrategy", "whole", "remove"),
    "a plugin that hides that it has no GPUs": (
        {"devicePlugin__values": {"failOnInitError": False}},
        "devicePlugin.values.failOnInitError",
        "healthy",
        "remove",
    ),
    "another namespace": (
        {"devicePlugin__values": {"namespaceOverride": "gpu"}},
        "devicePlugin.values.namespaceOverride",
        "looked for",
        "set devicePlugin.namespace",
    ),
    "no plugin": (
        {"devicePlugin__values": {"devicePlugin": {"enabled": False}}},
        "devicePlugin.values.devicePlugin",
        "no plugin",
        "devicePlugin.manage: false",
    ),
    "no image": ({"devicePlugin__values": {"image": None}}, "devicePlugin.values.image", "delete", "mapping"),
    "GPU Feature Discovery whose labels never come": (
        {"devicePlugin__values": {"gfd": {"enabled": True}}},
        "devicePlugin.values.gfd.enabled",
        "does not tolerate the taints of shared-a10g, whole-a100",
        "nfd.worker.tolerations",
    ),
    "another cluster": (
        {"karpenter__settings": {"clusterName": "other"}},
        "karpenter.settings.clusterName",
        "contradicts cluster.name, which is 'demo-gpu'",
        "remove it",
    ),
    "no cluster": ({"karpenter__settings": {"clusterName": None}}, "karpenter.settings.clusterName", "None", "remove"),
    "another queue": (
        {"karpenter__settings": {"interruptionQueue": "other"}},
        "karpenter.settings.interruptionQueue",
        "'other' contradicts karpenter.interruptionQueue",
        "remove it",
    ),
    "a queue in the settings alone": (
        {"karpenter__settings": {"interruptionQueue": "demo-gpu"}, "karpenter__interruptionQueue": None},
        "karpenter.settings.interruptionQueue",
        "which is None",
        "karpenter.interruptionQueue",
    ),
    "no gates": (
        {"karpenter__settings": {"featureGates": None}},
        "karpenter.settings.featureGates",
        "delete the chart's feature gates",
        "a mapping",
    ),
    "a gate that is half open": (
        {"karpenter__settings": {"featureGates": {"nodeRepair": "yes"}}},
        "karpenter.settings.featureGates.nodeRepair",
        "'yes' is not the state",
        "true or false",
    ),
    "settings among the values": (
        {"karpenter__values": {"settings": {"clusterName": "other"}}},
        "karpenter.values.settings",
        "a field of their own",
        "move it to karpenter.settings",
    ),
    "no settings": ({"karpenter__values": {"settings": None}}, "karpenter.values.settings", "None", "settings"),
    "replicas among the values": (
        {"karpenter__values": {"replicas": 1}},
        "karpenter.values.replicas",
        "1 contradicts",
        "set karpenter.replicas",
    ),
    "another name": (
        {"karpenter__values": {"nameOverride": "k"}},
        "karpenter.values.nameOverride",
        "app.kubernetes.io/name",
        "fullnameOverride",
    ),
    "no controller": ({"karpenter__values": {"controller": None}}, "karpenter.values.controller", "delete", "mapping"),
    "no limits of the controller": (
        {"karpenter__values": {"controller": {"resources": None}}},
        "karpenter.values.controller.resources",
        "delete",
        "mapping",
    ),
    "another cluster by environment": (
        {"karpenter__values": {"controller": {"env": [{"name": "A"}, {"name": "CLUSTER_NAME", "value": "other"}]}}},
        "karpenter.values.controller.env[1]",
        "CLUSTER_NAME would override",
        "set cluster.name",
    ),
    "gates by environment": (
        {"karpenter__values": {"controller": {"env": [{"name": "FEATURE_GATES", "value": "NodeOverlay=false"}]}}},
        "karpenter.values.controller.env[0]",
        "FEATURE_GATES",
        "karpenter.settings.featureGates",
    ),
    "another queue by environment": (
        {"karpenter__values": {"controller": {"env": [{"name": "INTERRUPTION_QUEUE", "value": ""}]}}},
        "karpenter.values.controller.env[0]",
        "INTERRUPTION_QUEUE",
        "karpenter.interruptionQueue",
    ),
    "another region by environment": (
        {"karpenter__values": {"controller": {"env": [{"name": "AWS_REGION", "value": "eu-west-1"}]}}},
        "karpenter.values.controller.env[0]",
        "is not aws.region us-west-2",
        "us-west-2",
    ),
    "spot without a queue": (
        {"karpenter__interruptionQueue": ...},
        "karpenter.interruptionQueue",
        "shared-a10g may buy spot instances, and without a queue Karpenter reads no interruption notice",
        "null accepts it",
    ),
    "spot with an empty queue": (
        {"karpenter__interruptionQueue": ""},
        "karpenter.interruptionQueue",
        "shared-a10g may buy spot",
        "write the queue's name",
    ),
    "one queue for two readers": (
        {"interruptions__queue": "demo-gpu"},
        "interruptions.queue",
        "demo-gpu is Karpenter's queue",
        "a queue of its own",
    ),
    "Karpenter handles without a queue": (
        {"interruptions__handler": "karpenter", "karpenter__interruptionQueue": None},
        "interruptions.handler",
        "no interruptions without karpenter.interruptionQueue",
        "handler: gpu-fleet",
    ),
    "both would handle": (
        {"interruptions__handler": "gpu-fleet"},
        "interruptions.handler",
        "Karpenter reads the queue demo-gpu",
        "handler: karpenter",
    ),
}


@pytest.mark.parametrize("situation", CONTRADICTIONS)
def test_a_contradiction_is_refused_with_the_field_to_use(situation: str) -> None:
    changes, field, said, remedy = CONTRADICTIONS[situation]
    with pytest.raises(SpecErrors) as caught:
        demo_spec(**changes)
    (problem,) = caught.value.problems
    assert problem.field == field
    assert said in problem.message
    assert remedy in problem.remedy


@pytest.mark.parametrize(("field", "owned"), [("devicePlugin", PLUGIN_VALUES), ("karpenter", KARPENTER_VALUES)])
def test_null_is_a_contradiction_wherever_a_value_is(field: str, owned: dict[tuple[str, ...], Any]) -> None:
    """Helm deletes a key whose value is null."""
    for (key,) in owned:
        with pytest.raises(SpecErrors, match=rf"{field}\.values\.{key}: None contradicts the spec"):
            demo_spec(**{f"{field}__values": {key: None}})


@pytest.mark.parametrize(
    "changes",
    [
        {"devicePlugin__values": {"image": {"repository": "example.com/plugin", "tag": "broken"}}},
        {"devicePlugin__values": {"fullnameOverride": "mine", "nameOverride": "gpu"}},
        {"devicePlugin__values": {"podAnnotations": {"a": "b"}, "resources": {"limits": {"memory": "1Gi"}}}},
        {"devicePlugin__values": {"updateStrategy": {"type": "OnDelete"}, "gfd": {"enabled": False}}},
        {
            "devicePlugin__values": {
                "gfd": {"enabled": True},
                "nfd": {"worker": {"tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}]}},
            }
        },
        {"karpenter__values": {"fullnameOverride": "k", "tolerations": [], "nodeSelector": None, "affinity": None}},
        {
            "karpenter__values": {
                "serviceAccount": {"annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/k"}}
            }
        },
        {"karpenter__values": {"controller": {"env": [{"name": "AWS_REGION", "value": "us-west-2"}, {"name": "A"}]}}},
        {
            "karpenter__settings": {
                "clusterName": "demo-gpu",
                "interruptionQueue": "demo-gpu",
                "batchIdleDuration": "2s",
            }
        },
        {"karpenter__settings": {"featureGates": {"nodeRepair": True}}},
        {"karpenter__interruptionQueue": None},
        {"karpenter__interruptionQueue": ..., "nodePools__0__capacityTypes": ["on-demand"]},
        {"karpenter__interruptionQueue": ..., "karpenter__manage": False},
        {
            "karpenter__interruptionQueue": ...,
            "nodePools__0__manage": False,
            "teardown__uninstallKarpenter": False,
        },
        {"interruptions__queue": "demo-gpu-fleet", "interruptions__handler": "karpenter"},
        {"interruptions__handler": "gpu-fleet", "karpenter__interruptionQueue": None},
        {"interruptions__handler": "karpenter", "karpenter__interruptionQueue": ..., "karpenter__manage": False},
    ],
)
def test_what_contradicts_nothing_passes(changes: dict[str, Any]) -> None:
    demo_spec(**changes)


def test_that_no_queue_was_accepted_survives_the_freezing_of_the_spec() -> None:
    """A run reads its spec back from JSON in which every default is written."""
    spec = demo_spec(karpenter__interruptionQueue=None)
    assert ClusterSpec.model_validate(spec.to_json()) == spec
    assert spec.digest != demo_spec().digest
