"""Which nodes Karpenter plans for which pods; pure."""

from __future__ import annotations

import pytest

from sandbox.aws.shapes import Shape
from sandbox.karpenter.cloudprovider.catalog import instance_type
from sandbox.karpenter.controllers.provisioner import manifest, pool_requirements
from sandbox.karpenter.requirements import from_labels
from sandbox.karpenter.scheduling.simulation import Room, Simulation, Template
from sandbox.kube.quantities import parse_all
from tests.sandbox.nodes.cluster import gpu_pod, node_pool

_BOTH = ("on-demand", "spot")
G5 = Shape("g5.xlarge", 4, 16384, 58, "amd64", 1, "A10G", 22888, _BOTH, "nitro", 250)
P4D = Shape("p4d.24xlarge", 96, 1179648, 737, "amd64", 8, "A100", 40960, _BOTH, "nitro", 8000)
ZONES = ("us-west-2a", "us-west-2b")


def _types(*shapes):
    return [instance_type(shape, ZONES, "us-west-2") for shape in shapes]


def _template(*shapes, remaining=None, daemons=None, **pool):
    made = node_pool("gpu", *(shape.name for shape in shapes), **pool)
    made["metadata"] |= {"uid": "pool-uid"}
    taints = made["spec"]["template"]["spec"]["taints"]
    return Template(
        made, pool_requirements(made), taints, _types(*shapes), parse_all(daemons), remaining and parse_all(remaining)
    )


def _pod(name="p", gpus=1, **spec):
    pod = gpu_pod(name, gpus, **spec)
    pod["metadata"]["uid"] = name
    return pod


def _plan(pods, *templates, rooms=(), available=lambda *_: True):
    return Simulation(list(rooms), list(templates), available).run(pods)


def _error(pod, *templates, **more):
    plan = _plan([pod], *templates, **more)
    assert not plan.new
    return plan.errors[pod["metadata"]["uid"]]


def test_sixteen_pods_get_two_large_nodes_and_not_sixteen_small_ones():
    plan = _plan([_pod(str(number)) for number in range(16)], _template(G5, P4D))
    assert [len(planned.pods) for planned in plan.new] == [8, 8]
    assert all([each.name for each in planned.types] == ["p4d.24xlarge"] for planned in plan.new)


def test_of_replicas_karpenter_knows_nothing():
    """Eight pods that could share two GPUs get eight nodes."""
    plan = _plan([_pod(str(number)) for number in range(8)], _template(G5))
    assert len(plan.new) == 8


def test_a_node_that_announces_replicas_takes_that_many_pods():
    free = parse_all({"cpu": "3", "memory": "10Gi", "pods": "50", "nvidia.com/gpu": "4"})
    room = Room("node", "claim", True, from_labels({}), [], free)
    plan = _plan([_pod(str(number)) for number in range(6)], _template(G5), rooms=[room])
    assert len(plan.placed) == 4
    assert len(plan.new) == 2


def test_daemon_sets_are_part_of_the_request():
    plan = _plan([_pod()], _template(G5, daemons={"cpu": "500m", "pods": "2"}))
    claim = manifest(plan.new[0], _NoClasses())
    assert claim["spec"]["resources"]["requests"] == {"cpu": "500m", "nvidia.com/gpu": "1", "pods": "3"}


def test_pods_that_repel_each_other_get_a_node_each():
    affinity = {
        "podAntiAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [
                {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "probe"}}}
            ]
        }
    }
    plan = _plan([_pod(str(number), affinity=affinity) for number in range(3)], _template(P4D))
    assert len(plan.new) == 3


def test_what_a_claim_says():
    plan = _plan([_pod()], _template(G5, terminationGracePeriod="10m"))
    claim = manifest(plan.new[0], _NoClasses())
    meta, spec = claim["metadata"], claim["spec"]
    assert meta["generateName"] == "gpu-"
    assert meta["ownerReferences"][0] | {"blockOwnerDeletion": True, "kind": "NodePool"} == meta["ownerReferences"][0]
    assert meta["labels"] == {
        "karpenter.sh/nodepool": "gpu",
        "karpenter.sh/capacity-type": "on-demand",
        "karpenter.k8s.aws/ec2nodeclass": "gpu",
        "node.kubernetes.io/instance-type": "g5.xlarge",
        "nvidia.com/gpu.present": "true",
    }
    assert spec["terminationGracePeriod"] == "10m"
    assert spec["expireAfter"] == "720h"
    assert spec["taints"][0]["key"] == "nvidia.com/gpu"
    keys = [entry["key"] for entry in spec["requirements"]]
    assert "kubernetes.io/hostname" not in keys


def test_taint_that_is_not_tolerated():
    assert _error(_pod(tolerations=[]), _template(G5)) == (
        "did not tolerate taint (taint=nvidia.com/gpu=true:NoSchedule)"
    )


def test_more_gpus_than_any_type_has():
    text = _error(_pod(gpus=3), _template(G5))
    assert text.startswith("no instance type has enough resources, requirements=")
    assert text.endswith('resources={"nvidia.com/gpu":"3","pods":"1"}')


def test_a_pinned_pod_cannot_be_served():
    text = _error(_pod(nodeSelector={"kubernetes.io/hostname": "ip-10-0-0-1"}), _template(G5))
    assert text.startswith(
        "incompatible requirements, key kubernetes.io/hostname, kubernetes.io/hostname In [ip-10-0-0-1]"
    )


def test_limits_on_gpus():
    text = "all available instance types exceed limits for nodepool (NodePool=gpu)"
    assert _error(_pod(), _template(G5, remaining={"nvidia.com/gpu": "0"})) == text


def _limited(pods, **remaining):
    plan = _plan([_pod(str(number)) for number in range(pods)], _template(G5, remaining=remaining))
    return len(plan.new), set(plan.errors.values())


def test_limits_on_nodes_are_no_cap_within_a_pass():
    """``subtractMax`` takes the types' capacity off the rest, and no type has one of ``nodes``
    (core v1.14.1 ``scheduler.go``; kubernetes-sigs/karpenter#2915: 101 claims in one pass past a limit)."""
    assert _limited(12, nodes="2") == (12, set())


def test_a_limit_of_no_nodes_holds():
    """``nodesRemaining.IsZero()``: this is what a teardown's freeze rests on."""
    assert _limited(3, nodes="0") == (0, {"node limits have been exhausted for nodepool (NodePool=gpu)"})


def test_an_overrun_limit_on_nodes_holds_too():
    """Below zero it is no longer zero; then ``filterByRemainingResources`` refuses, with another text."""
    assert _limited(3, nodes="-2") == (0, {"all available instance types exceed limits for nodepool (NodePool=gpu)"})


@pytest.mark.parametrize("limit", [{"cpu": "8"}, {"nvidia.com/gpu": "2"}, {"memory": "32Gi"}])
def test_limits_on_capacity_are_counted_within_a_pass(limit):
    assert _limited(12, nodes="2", **limit) == (
        2,
        {"all available instance types exceed limits for nodepool (NodePool=gpu)"},
    )


def test_within_a_pass_the_largest_type_counts():
    small = Shape("g5.large", 2, 8192, 29, "amd64", 1, "A10G", 22888, _BOTH, "nitro", 250)
    plan = _plan([_pod(str(number)) for number in range(6)], _template(small, G5, remaining={"cpu": "8"}))
    assert len(plan.new) == 2


def test_no_capacity_anywhere():
    text = _error(_pod(), _template(G5), available=lambda *_: False)
    assert text.startswith("no instance type has the required offering, requirements=")


def test_no_capacity_in_one_zone_leaves_the_other():
    plan = _plan([_pod()], _template(G5), available=lambda _, offering: offering.zone == "us-west-2b")
    assert len(plan.new) == 1


def test_an_unknown_label():
    text = _error(_pod(nodeSelector={"team": "a"}), _template(G5))
    assert text == 'incompatible requirements, label "team" does not have known values'


@pytest.mark.parametrize(
    ("selector", "fits"), [({"nvidia.com/gpu.present": "true"}, True), ({"nvidia.com/gpu.present": "false"}, False)]
)
def test_template_labels_are_known(selector, fits):
    assert bool(_plan([_pod(nodeSelector=selector)], _template(G5)).new) is fits


def test_every_pool_is_named_in_turn():
    text = _error(_pod(gpus=9, tolerations=[]), _template(G5), _template(P4D))
    assert text.count("did not tolerate taint") == 2


class _NoClasses:
    def get(self, _name):
        return None
