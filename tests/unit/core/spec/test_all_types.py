"""Every instance type of the catalogue, as the only one of a pool."""

from __future__ import annotations

import json

import pytest

from gpu_fleet.core.catalogue.types import FILE, find
from gpu_fleet.core.manifests.build import build
from gpu_fleet.core.spec import SpecErrors
from gpu_fleet.core.spec.instances import architecture, is_fractional, physical_gpus, pod_places, vcpus
from tests.unit.core.specs import demo_spec

NAMES = sorted(json.loads(FILE.read_text())["types"])


@pytest.mark.parametrize("name", [name for name in NAMES if "f." not in name])
def test_a_type_with_whole_gpus_is_accepted_and_built(name: str) -> None:
    spec = demo_spec(nodePools__0__instanceTypes=[name])
    known = find(name)
    assert known is not None
    assert spec.node_pools[0].gpus_per_node == known.gpus > 0
    [pool] = build("node_pool", spec, pool=spec.node_pools[0].name)
    wanted = {each["key"]: each.get("values") for each in pool["spec"]["template"]["spec"]["requirements"]}
    assert wanted["kubernetes.io/arch"] == [known.architecture]
    assert pool["spec"]["limits"]["cpu"] == str(known.vcpus * spec.node_pools[0].node_limit)


@pytest.mark.parametrize("name", [name for name in NAMES if "f." in name])
def test_a_part_of_a_gpu_is_refused_with_the_remedy(name: str) -> None:
    with pytest.raises(SpecErrors, match="only a part of a GPU") as caught:
        demo_spec(nodePools__0__instanceTypes=[name])
    assert [problem.field for problem in caught.value.problems] == ["nodePools[0].instanceTypes[0]"]
    assert "g6.xlarge, and share it" in caught.value.problems[0].remedy


@pytest.mark.parametrize("name", ["g4ad.xlarge", "inf2.xlarge", "trn1.2xlarge", "trn2.48xlarge", "dl1.24xlarge"])
def test_what_has_no_nvidia_gpu_is_refused(name: str) -> None:
    with pytest.raises(SpecErrors, match="NVIDIA device plugin cannot serve"):
        demo_spec(nodePools__0__instanceTypes=[name])


@pytest.mark.parametrize("name", ["g6f.24xlarge", "gr6f.xlarge"])
def test_an_unknown_size_of_a_fractional_family_is_refused_too(name: str) -> None:
    assert is_fractional(name)
    with pytest.raises(SpecErrors, match="only a part of a GPU"):
        demo_spec(nodePools__0__instanceTypes=[name])


def test_new_families_may_not_be_mixed_with_other_counts() -> None:
    with pytest.raises(SpecErrors, match=r"g7e.48xlarge 8, g7e.2xlarge 1"):
        demo_spec(nodePools__0__instanceTypes=["g7e.48xlarge", "g7e.2xlarge"])


def test_an_unknown_type_is_left_to_ec2() -> None:
    assert physical_gpus("g9.xlarge") is None
    assert pod_places("g9.xlarge") is None
    assert vcpus("g9.xlarge") == 4
    assert architecture("g9.xlarge") == "amd64"
    assert architecture("p6e-gb300.36xlarge") == "arm64"
    assert demo_spec(nodePools__0__instanceTypes=["g9.xlarge"]).node_pools[0].gpus_per_node is None
