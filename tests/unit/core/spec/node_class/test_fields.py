"""The node class: fields, their bounds, what a pool has of its own, and what contradicts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from gpu_fleet.core.spec import SpecErrors
from gpu_fleet.core.spec.node_class import Family, PoolNodeClass
from gpu_fleet.core.spec.node_class.extra import OWNED, PASSED_THROUGH
from tests.unit.core.specs import REPOSITORY, demo_mapping, demo_spec, parse_cluster

PRIMARY = {"networkCardIndex": 0, "deviceIndex": 0, "interfaceType": "interface"}
EFA = {"networkCardIndex": 0, "deviceIndex": 1, "interfaceType": "efa-only"}
BOTTLEROCKET = "bottlerocket@1.60.0"

#: situation -> changes, field, part of the message, part of the remedy
BROKEN: dict[str, tuple[dict[str, Any], str, str, str]] = {
    # volumes
    "throughput of gp2": ({"volume": {"type": "gp2", "throughput": 200}}, "volume", "for gp3 alone", "type: gp3"),
    "throughput beyond gp3": ({"volume": {"throughput": 2000}}, "volume.throughput", "1000", "at most 1000"),
    "throughput below gp3": ({"volume": {"throughput": 100}}, "volume.throughput", "125", "125 or more"),
    "throughput without its IOPS": ({"volume": {"throughput": 1000}}, "volume", "need 4000 IOPS", "iops: 4000"),
    "io2 without IOPS": ({"volume": {"type": "io2"}}, "volume", "no default IOPS", "give iops"),
    "IOPS of gp2": ({"volume": {"type": "gp2", "iops": 3000}}, "volume", "cannot be set", "gp3"),
    "too many IOPS": ({"volume": {"iops": 17_000}}, "volume", "not possible with gp3", "3000 to 16000"),
    "IOPS for the size": ({"volume": {"iops": 16_000}, "volumeSize": 30}, "volume.iops", "need 32 GiB", "volumeSize"),
    "a key without encryption": (
        {"volume": {"encrypted": False, "kmsKey": "alias/x"}}, "volume", "without encryption", "encrypted: true"),
    "a key for a snapshot": (
        {"volume": {"snapshot": "snap-0a", "kmsKey": "alias/x"}}, "volume", "takes over its encryption", "copy the"),
    "no key": ({"volume": {"kmsKey": "my key"}}, "volume.kmsKey", "does not name a KMS key", "alias/name"),
    "no snapshot": ({"volume": {"snapshot": "vol-1"}}, "volume.snapshot", "not the id of an EBS snapshot", "snap-"),
    "a rate without a snapshot": ({"volume": {"initializationRate": 200}}, "volume", "of a snapshot", "give snapshot"),
    "an operating system volume of AL2023": ({"osVolumeSize": 8}, "osVolumeSize", "one volume", "remove it"),
    # AMI
    "no AMI at all": ({"ami": {"family": "AL2023"}}, "ami", "selects no AMI", "give ids"),
    "an owner alone": ({"ami": {"family": "AL2023", "owner": "self"}}, "ami", "selects no AMI", "give ids"),
    "ids and a name": (
        {"ami": {"family": "AL2023", "ids": ["ami-0a"], "name": "x"}}, "ami", "cannot be combined", "one of them"),
    "an unknown family": ({"ami": {"family": "AL2", "ids": ["ami-0a"]}}, "ami.family", "not allowed", "AL2023"),
    "no AMI id": ({"ami": {"family": "AL2023", "ids": ["x"]}}, "ami.ids[0]", "not the id of an AMI", "ami-"),
    "an empty tag": ({"ami": {"family": "AL2023", "tags": {"a": ""}}}, "ami.tags", "empty tag", "'*'"),
    # network
    "no subnet": ({"subnets": []}, "subnets", "", "at least 1"),
    "a subnet two ways": ({"subnets": [{"id": "subnet-0a", "tags": {"a": "b"}}]}, "subnets[0]", "either id", "give"),
    "a subnet no way": ({"subnets": [{}]}, "subnets[0]", "either id or tags", "give one"),
    "a group's name as id": ({"securityGroups": [{"id": "gpu"}]}, "securityGroups[0].id", "not the id", "name: gpu"),
    "a group two ways": ({"securityGroups": [{"id": "sg-0a", "name": "x"}]}, "securityGroups[0]", "exactly one", ""),
    "no primary interface": ({"networkInterfaces": [EFA]}, "networkInterfaces", "no primary", "add"),
    "two interfaces in one place": ({"networkInterfaces": [PRIMARY, PRIMARY]}, "networkInterfaces", "device 0", "own"),
    "two EFAs on a card": (
        {"networkInterfaces": [PRIMARY, EFA, {**EFA, "deviceIndex": 2}]}, "networkInterfaces", "two efa-only", "one"),
    "EFA with an address": (
        {"networkInterfaces": [{**PRIMARY, "interfaceType": "efa"}]},
        "networkInterfaces[0].interfaceType", "not supported in an EC2NodeClass of Karpenter 1.14", "efa-only"),
    "a placement group two ways": ({"placementGroup": {"id": "pg-0a", "name": "x"}}, "placementGroup", "exactly", ""),
    "a placement group's name as id": ({"placementGroup": {"id": "x"}}, "placementGroup.id", "not the id", "name: x"),
    "no instance metadata": ({"metadataOptions": {"httpEndpoint": "disabled"}}, "metadataOptions.httpEndpoint",
                             "none would join", "enabled"),
    "a hop too many": ({"metadataOptions": {"httpPutResponseHopLimit": 65}}, "metadataOptions.httpPutResponseHopLimit",
                       "64", "at most 64"),
    # kubelet
    "an unknown signal": ({"kubelet": {"evictionHard": {"mem": "5%"}}}, "kubelet.evictionHard", "not an eviction", ""),
    "no threshold": ({"kubelet": {"evictionHard": {"pid.available": "x"}}}, "kubelet.evictionHard", "no threshold", ""),
    "more than everything": (
        {"kubelet": {"evictionHard": {"pid.available": "101%"}}}, "kubelet.evictionHard", "no threshold", "5%"),
    "what cannot be reserved": ({"kubelet": {"kubeReserved": {"gpu": "1"}}}, "kubelet.kubeReserved", "reserved", "cpu"),
    "a negative reserve": ({"kubelet": {"systemReserved": {"cpu": "-1"}}}, "kubelet.systemReserved", "quantity", ""),
    "a soft eviction without grace": (
        {"kubelet": {"evictionSoft": {"memory.available": "10%"}}}, "kubelet", "only in one of", "both"),
    "image collection upside down": (
        {"kubelet": {"imageGCHighThresholdPercent": 70, "imageGCLowThresholdPercent": 80}}, "kubelet", "ever", "raise"),
    "no address of DNS": ({"kubelet": {"clusterDNS": ["dns"]}}, "kubelet.clusterDNS", "not an IP address", "10.100"),
    "an unknown kubelet field": ({"kubelet": {"maxPod": 1}}, "kubelet.maxPod", "not a key", "spelling"),
    # disks
    "RAID0 without disks": (
        {"instanceStorePolicy": "RAID0", "instanceTypes": ["p3.2xlarge"]},
        "instanceStorePolicy", "p3.2xlarge of pool shared-a10g has no instance store", "none for this pool"),
    "RAID0 over a snapshot": (
        {"instanceStorePolicy": "RAID0", "volume": {"snapshot": "snap-0a"}}, "instanceStorePolicy", "hides", "remove"),
    # extra
    "an unknown extra field": ({"extra": {"fleet": 1}}, "extra", "no field 'fleet'", "connectionTracking"),
    "our own field in extra": ({"extra": {"userData": "x"}}, "extra", "would override the spec", "nodeClass.userData"),
    "an extra value out of bounds": (
        {"extra": {"connectionTracking": {"udpTimeout": 10}}}, "extra", "udpTimeout is 10", "30 to 60"),
    "an extra field's unknown field": ({"extra": {"cpuOptions": {"cores": 2}}}, "extra", "no field 'cores'", "nested"),
    "an empty extra field": ({"extra": {"connectionTracking": {}}}, "extra", "is empty", "at least one"),
    "an extra field of another type": ({"extra": {"ipPrefixCount": "1"}}, "extra", "a whole number", ""),
    # user data
    "user data that is no YAML": ({"userData": "spec: [\n"}, "userData", "AL2023 user data, line", "correct it"),
    "user data with a NUL": ({"userData": "#!/bin/sh\0"}, "userData", "invisible", "remove"),
    "user data of more than EC2 takes": ({"userData": "#" * 14_337}, "userData", "", "at most 14336"),
}  # fmt: skip


@pytest.mark.parametrize("place", ["nodeClass", "nodePools[0].nodeClass"])
@pytest.mark.parametrize("situation", BROKEN)
def test_a_field_that_cannot_be_is_named_with_the_remedy(situation: str, place: str) -> None:
    changes, field, message, remedy = BROKEN[situation]
    path = "nodeClass" if place == "nodeClass" else "nodePools__0__nodeClass"
    given = {
        ("nodePools__0__instanceTypes" if key == "instanceTypes" else f"{path}__{key}"): value
        for key, value in changes.items()
    }
    with pytest.raises(SpecErrors) as caught:
        demo_spec(**given)
    problem = caught.value.problems[0]
    assert problem.field == f"{place}.{field}"
    assert message in problem.message
    assert remedy in problem.remedy


def test_user_data_of_bottlerocket_is_read_as_toml() -> None:
    with pytest.raises(SpecErrors) as caught:
        demo_spec(nodePools__0__amiAlias=BOTTLEROCKET, nodePools__0__nodeClass={"userData": "a = = 1"})
    assert caught.value.field == "nodePools[0].nodeClass.userData"
    assert "line 1: not valid TOML" in str(caught.value)


def test_what_all_pools_have_wrong_is_said_once() -> None:
    with pytest.raises(SpecErrors) as caught:
        demo_spec(nodeClass__userData="hello")
    assert [problem.field for problem in caught.value.problems] == ["nodeClass.userData"]


def test_a_file_is_pointed_at_with_the_line_of_the_field(tmp_path: Path) -> None:
    from gpu_fleet.hooks.files.clusters import load_cluster

    mapping = demo_mapping(nodeClass__userData="spec: [\n")
    text = yaml.safe_dump(mapping, sort_keys=False)
    (tmp_path / "demo.yaml").write_text(text)
    with pytest.raises(SpecErrors) as caught:
        load_cluster("demo", tmp_path)
    line = next(number for number, each in enumerate(text.splitlines(), 1) if "userData" in each)
    assert str(line) in caught.value.place


@pytest.mark.parametrize(
    ("field", "value"),
    [("networkInterfaces", [PRIMARY, EFA]), ("placementGroup", {"name": "ours"}),
     ("extra", {"connectionTracking": {"udpTimeout": 30}})],
)  # fmt: skip
def test_an_older_karpenter_does_not_know_every_field(field: str, value: Any) -> None:
    with pytest.raises(SpecErrors, match=r"Karpenter 1\.11\.0 has no such field"):
        demo_spec(**{f"nodeClass__{field}": value, "karpenter__chart__version": "1.11.0", "cluster__version": "1.35"})
    demo_spec(**{f"nodeClass__{field}": value})


# --- pools -----------------------------------------------------------------------------------------------------------


def test_a_pool_has_its_own_fields_and_takes_over_the_others() -> None:
    spec = demo_spec(
        nodeClass__volume={"throughput": 500}, nodeClass__tags={"a": "b"}, nodeClass__fastStart=True,
        nodePools__0__nodeClass={"volumeSize": 300, "fastStart": False},
    )  # fmt: skip
    own, other = (spec.node_class_of(pool) for pool in spec.node_pools)
    assert (own.volume_size, own.fast_start, own.tags) == (300, False, {"a": "b"})
    assert own.volume is not None
    assert own.volume.throughput == 500
    assert (other.volume_size, other.fast_start) == (100, True)


def test_an_alias_of_a_pool_replaces_amis_of_all() -> None:
    ours = {"family": "AL2023", "ids": ["ami-0a"]}
    spec = demo_spec(nodeClass__ami=ours, nodePools__0__amiAlias=BOTTLEROCKET)
    families = [spec.node_class_of(pool).family for pool in spec.node_pools]
    assert families == [Family.BOTTLEROCKET, Family.AL2023]
    with pytest.raises(SpecErrors, match="also has amiAlias"):
        demo_spec(nodePools__0__nodeClass={"ami": ours}, nodePools__0__amiAlias="al2023@v20260714")


def test_a_spec_with_its_defaults_written_out_is_the_same() -> None:
    spec = demo_spec(nodeClass__fastStart=True, nodePools__0__nodeClass={"userData": "#!/bin/sh\ntrue\n"})
    again = parse_cluster(json.loads(json.dumps(spec.to_json())))
    assert again == spec
    assert again.digest == spec.digest


def test_the_discovery_tag_is_needed_until_both_are_selected_otherwise() -> None:
    with pytest.raises(SpecErrors) as caught:
        demo_spec(nodeClass__discoveryTag=..., nodeClass__subnets=[{"id": "subnet-0a"}])
    assert caught.value.field == "nodeClass.discoveryTag"
    assert "no securityGroups" in str(caught.value)
    demo_spec(
        nodeClass__discoveryTag=...,
        nodeClass__subnets=[{"id": "subnet-0a"}],
        nodeClass__securityGroups=[{"name": "gpu"}],
    )


def test_only_bottlerocket_that_we_write_the_class_for_brings_its_plugin() -> None:
    spec = demo_spec(nodePools__0__amiAlias=BOTTLEROCKET)
    assert [pool.built_in_plugin for pool in spec.node_pools] == [True, False]
    assert [spec.brings_plugin(pool) for pool in spec.node_pools] == [True, False]
    theirs = demo_spec(nodePools__0__amiAlias=BOTTLEROCKET, devicePlugin__manage=False)
    assert [pool.built_in_plugin for pool in theirs.node_pools] == [False, False]
    assert [theirs.brings_plugin(pool) for pool in theirs.node_pools] == [True, False]


def test_every_field_of_the_crd_is_ours_or_passed_through() -> None:
    """The CRD of the sandbox has the fields of Karpenter's API reference."""
    path = REPOSITORY / "sandbox/charts/karpenter-crd/templates/karpenter.k8s.aws_ec2nodeclasses.yaml"
    crd = yaml.safe_load(path.read_text())
    fields = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    assert set(fields) == set(OWNED) | set(PASSED_THROUGH)


def test_a_pool_may_say_everything_but_the_identity() -> None:
    from gpu_fleet.core.spec import NodeClass

    others = {"role", "ami_alias", "discovery_tag", "capacity_reservations"}
    assert set(NodeClass.model_fields) - set(PoolNodeClass.model_fields) == others
