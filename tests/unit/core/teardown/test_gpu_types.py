from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core.teardown.gpu_types import group_may_have_gpus, may_have_gpus, node_has_gpus, pool_may_launch_gpus

AWS = "karpenter.k8s.aws"


def pool(*requirements: tuple[str, str, list[str]]) -> dict[str, Any]:
    rules = [{"key": key, "operator": operator, "values": values} for key, operator, values in requirements]
    return {"metadata": {"name": "p"}, "spec": {"template": {"spec": {"requirements": rules}}}}


@pytest.mark.parametrize(
    ("instance_type", "has"),
    [
        ("g5.xlarge", True),
        ("p5e.48xlarge", True),
        ("g7e.2xlarge", True),
        ("gr6f.4xlarge", True),
        ("p6-b300.48xlarge", True),
        ("g4ad.xlarge", False),
        ("p2.xlarge", False),
        ("m5.large", False),
        ("c7gn.large", False),
        ("inf2.xlarge", False),
        ("trn2.48xlarge", False),
        ("u-6tb1.metal", False),
        ("", False),
    ],
)
def test_types_with_nvidia_gpus_are_known_by_table_or_category(instance_type: str, has: bool) -> None:
    assert may_have_gpus(instance_type) is has


#: requirements of a NodePool of others -> whether it may launch a node with NVIDIA GPUs
POOLS: dict[str, tuple[list[tuple[str, str, list[str]]], bool]] = {
    "none at all": ([], True),
    "only what every pool has": (
        [("kubernetes.io/arch", "In", ["amd64"]), ("kubernetes.io/os", "In", ["linux"])],
        True,
    ),
    "general purpose categories": ([(f"{AWS}/instance-category", "In", ["c", "m", "r"])], False),
    "categories with g": ([(f"{AWS}/instance-category", "In", ["c", "g"])], True),
    "all categories but g and p": ([(f"{AWS}/instance-category", "NotIn", ["g", "gr", "p"])], False),
    "a GPU type": ([("node.kubernetes.io/instance-type", "In", ["g6.xlarge", "m5.large"])], True),
    "a GPU type newer than our table": ([("node.kubernetes.io/instance-type", "In", ["g9.xlarge"])], True),
    "other types": ([("node.kubernetes.io/instance-type", "In", ["m5.large"])], False),
    "a GPU family": ([(f"{AWS}/instance-family", "In", ["p5"])], True),
    "a GPU family newer than our table": ([(f"{AWS}/instance-family", "In", ["g9"])], True),
    "an AMD family": ([(f"{AWS}/instance-family", "In", ["g4ad"])], False),
    "NVIDIA by manufacturer": ([(f"{AWS}/instance-gpu-manufacturer", "In", ["nvidia"])], True),
    "AMD by manufacturer": ([(f"{AWS}/instance-gpu-manufacturer", "In", ["amd"])], False),
    "a GPU by name": ([(f"{AWS}/instance-gpu-name", "In", ["a10g"])], True),
    "any GPU": ([(f"{AWS}/instance-gpu-count", "Exists", [])], True),
    "more than four GPUs": ([(f"{AWS}/instance-gpu-count", "Gt", ["4"])], True),
    "no GPU by name": ([(f"{AWS}/instance-gpu-name", "DoesNotExist", [])], False),
    "no GPU by count": ([(f"{AWS}/instance-gpu-count", "DoesNotExist", [])], False),
    "fewer than one GPU": ([(f"{AWS}/instance-gpu-count", "Lt", ["1"])], False),
    "a family and a size that our table has not yet": (
        [(f"{AWS}/instance-family", "In", ["p5e"]), (f"{AWS}/instance-size", "In", ["large"])],
        True,
    ),
    "old generations only": (
        [(f"{AWS}/instance-category", "In", ["g"]), (f"{AWS}/instance-generation", "Lte", ["3"])],
        False,
    ),
    "EKS Auto Mode, general purpose": ([("eks.amazonaws.com/instance-category", "In", ["c", "m", "r"])], False),
    "EKS Auto Mode, accelerated": ([("eks.amazonaws.com/instance-category", "In", ["g", "p"])], True),
    "a custom label": ([("team", "In", ["vision"])], True),
}


@pytest.mark.parametrize("situation", POOLS)
def test_a_pool_may_launch_gpus_unless_its_requirements_exclude_every_gpu_type(situation: str) -> None:
    requirements, may = POOLS[situation]
    assert pool_may_launch_gpus(pool(*requirements)) is may


@pytest.mark.parametrize(
    ("group", "may"),
    [
        ({"instanceTypes": ["g5.xlarge"], "amiType": "AL2_x86_64"}, True),
        ({"instanceTypes": ["m5.large"], "amiType": "AL2023_x86_64_STANDARD"}, False),
        ({"instanceTypes": [], "amiType": "AL2023_x86_64_NVIDIA"}, True),
        ({"amiType": "AL2_x86_64_GPU"}, True),
        ({"amiType": "BOTTLEROCKET_ARM_64_NVIDIA"}, True),
        ({"amiType": "AL2023_x86_64_NEURON", "instanceTypes": ["inf2.xlarge"]}, False),
        ({"amiType": "CUSTOM", "launchTemplate": {}}, True),
        ({"amiType": "CUSTOM", "instanceTypes": ["m5.large"]}, False),
    ],
)
def test_a_node_group_is_judged_by_its_types_and_its_ami(group: dict[str, Any], may: bool) -> None:
    assert group_may_have_gpus(group) is may


@pytest.mark.parametrize(
    ("node", "has"),
    [
        ({"metadata": {"name": "n"}, "status": {"capacity": {"nvidia.com/gpu": "4"}}}, True),
        ({"metadata": {"name": "n"}, "status": {"capacity": {"nvidia.com/gpu": "0"}}}, False),
        ({"metadata": {"name": "n", "labels": {"nvidia.com/gpu.present": "true"}}}, True),
        ({"metadata": {"name": "n", "labels": {"node.kubernetes.io/instance-type": "g5.xlarge"}}}, True),
        ({"metadata": {"name": "n", "labels": {"node.kubernetes.io/instance-type": "m5.large"}}}, False),
    ],
)
def test_a_node_has_gpus_also_before_its_plugin_runs(node: dict[str, Any], has: bool) -> None:
    assert node_has_gpus(node) is has
