"""What ``fastStart`` does to a pool, by its AMI, its instance types and its volume."""

from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core.spec.node_class.fast_start import fast_start, large_enough, older
from gpu_fleet.core.spec.notes import notes_of
from tests.unit.core.specs import demo_spec

TWO, FOUR = ["g5.2xlarge"], ["g5.2xlarge", "g5.4xlarge"]


def start(types: list[str], alias: str = "al2023@v20260714", **node_class: Any) -> Any:
    spec = demo_spec(
        nodePools__0__instanceTypes=types,
        nodePools__0__amiAlias=alias,
        nodePools__0__nodeClass={"fastStart": True, **node_class},
    )
    pool = spec.node_pools[0]
    return fast_start(spec.node_class_of(pool), pool.instance_types)


def test_with_disks_of_its_own_the_volume_stays_what_it_is() -> None:
    found = start(FOUR)
    assert (found.raid, found.volume, found.parallel) == (True, None, True)
    assert found.left_out == ()


@pytest.mark.parametrize("types", [["p3.2xlarge"], ["g9.2xlarge"]], ids=["no disks", "not known"])
def test_without_disks_the_volume_gets_the_least_throughput(types: list[str]) -> None:
    found = start(types)
    assert (found.raid, found.parallel) == (False, True)
    assert (found.volume.throughput, found.volume.iops) == (600, None)
    assert "no RAID0" in found.left_out[0]


def test_the_smallest_type_decides() -> None:
    found = start(["g5.xlarge", "g5.2xlarge"])
    assert (found.raid, found.parallel) == (True, False)
    assert "g5.xlarge is smaller than 2xlarge" in found.left_out[0]


def test_a_volume_that_the_user_chose_is_not_raised() -> None:
    found = start(TWO, instanceStorePolicy="none", volume={"throughput": 300})
    assert (found.volume.throughput, found.parallel) == (300, False)
    assert "below 600 MiB/s" in found.left_out[0]
    assert start(TWO, instanceStorePolicy="none", volume={"throughput": 700}).parallel


@pytest.mark.parametrize(
    ("alias", "policy", "parallel"),
    [
        ("al2023@v20250715", "none", False),
        ("al2023@v20250813", "none", True),
        ("al2023@v20250813", "RAID0", False),
        ("al2023@v20251217", "RAID0", True),
    ],
)
def test_an_older_ami_has_no_parallel_pull(alias: str, policy: str, parallel: bool) -> None:
    assert start(TWO, alias, instanceStorePolicy=policy).parallel is parallel


@pytest.mark.parametrize(
    ("alias", "raid", "parallel"),
    [
        ("bottlerocket@1.40.0", True, False),
        ("bottlerocket@v1.44.0", True, True),
        ("bottlerocket@1.60.1-abc", True, True),
    ],
)
def test_bottlerocket_has_its_own_releases(alias: str, raid: bool, parallel: bool) -> None:
    found = start(TWO, alias)
    assert (found.raid, found.parallel) == (raid, parallel)


def test_images_of_a_snapshot_are_neither_hidden_nor_removed() -> None:
    found = start(TWO, "bottlerocket@1.60.0", volume={"snapshot": "snap-0a"})
    assert (found.raid, found.parallel, found.volume.snapshot, found.volume.throughput) == (
        False,
        False,
        "snap-0a",
        600,
    )
    assert any("would hide" in each for each in found.left_out)
    assert any("would remove" in each for each in found.left_out)


def test_without_it_only_what_is_asked_for_is_done() -> None:
    spec = demo_spec(nodeClass__instanceStorePolicy="RAID0", nodeClass__volume={"throughput": 200})
    found = fast_start(spec.node_class, TWO)
    assert (found.raid, found.volume.throughput if found.volume else 0, found.parallel) == (True, 200, False)


@pytest.mark.parametrize(
    ("name", "large"),
    [("g5.xlarge", False), ("g5.2xlarge", True), ("g4dn.metal", True), ("g5.large", False), ("g5.odd", False)],
)
def test_large_enough(name: str, large: bool) -> None:
    assert large_enough(name) is large


@pytest.mark.parametrize(
    ("version", "first", "expected"),
    [("v20250101", "v20250813", True), ("v20260714", "v20250813", False), ("", "v20250813", False),
     ("1.9.0", "1.44.0", True), ("v1.44.0", "1.44.0", False), ("1.60.1-abc", "1.44.0", False),
     ("odd", "1.44.0", False)],
)  # fmt: skip
def test_older(version: str, first: str, expected: bool) -> None:
    assert older(version, first) is expected


# --- notes -----------------------------------------------------------------------------------------------------------


def notes(**changes: Any) -> dict[str, str]:
    return {note.field: note.message for note in notes_of(demo_spec(**changes))}


def test_validate_says_what_it_does_to_each_pool() -> None:
    found = notes(nodeClass__fastStart=True, nodePools__0__nodeClass={"fastStart": False})
    assert (
        "pool whole-a100: images are on the instance's NVMe disks (RAID0); images are pulled"
        in found["nodeClass.fastStart"]
    )
    assert "nodePools[0].nodeClass.fastStart" not in found


def test_a_gate_set_by_hand_on_small_types_is_noted() -> None:
    text = "apiVersion: node.eks.aws/v1alpha1\nkind: NodeConfig\nspec:\n  featureGates: {FastImagePull: true}\n"
    found = notes(nodePools__0__nodeClass={"userData": text}, nodePools__0__instanceTypes=["g5.xlarge"])
    assert "below 4 vCPUs nodeadm ignores it" in found["nodePools[0].nodeClass.userData"]
    quiet = notes(nodePools__0__nodeClass={"userData": text}, nodePools__0__instanceTypes=["g5.2xlarge"])
    assert "nodePools[0].nodeClass.userData" not in quiet


def test_metadata_for_pods_is_noted() -> None:
    found = notes(nodeClass__metadataOptions={"httpPutResponseHopLimit": 2})
    assert "can use the node's role" in found["nodeClass.metadataOptions.httpPutResponseHopLimit"]
