"""The EC2NodeClass of a pool: every field of the node class, and nothing where a field is not given."""

from __future__ import annotations

import email
import tomllib
from typing import Any

import pytest
import yaml

from gpu_fleet.core.manifests.build import build, pool_labels
from gpu_fleet.core.manifests.user_data import toml_text
from gpu_fleet.core.manifests.values import helm_values, plugin_configs
from gpu_fleet.core.nodes.template import class_fields, differences, pool_fields
from gpu_fleet.core.spec import ClusterSpec
from tests.unit.core.specs import demo_spec

POOL = "shared-a10g"
BOTTLEROCKET = "bottlerocket@1.60.0"
NODE_CONFIG = "apiVersion: node.eks.aws/v1alpha1\nkind: NodeConfig\nspec:\n  kubelet: {flags: [--v=4]}\n"


def body(spec: ClusterSpec | None = None, pool: str = POOL, **changes: Any) -> dict[str, Any]:
    (manifest,) = build("node_class", spec or demo_spec(**changes), pool=pool)
    found: dict[str, Any] = manifest["spec"]
    return found


def of_pool(**node_class: Any) -> dict[str, Any]:
    return body(nodePools__0__nodeClass=node_class)


#: What the manifest of the demo cluster's pool has been since before there was more to say: a difference would drift
#: nodes that exist.
SINCE_EVER = {
    "amiSelectorTerms": [{"alias": "al2023@v20260714"}],
    "subnetSelectorTerms": [{"tags": {"karpenter.sh/discovery": "demo-gpu"}}],
    "securityGroupSelectorTerms": [{"tags": {"karpenter.sh/discovery": "demo-gpu"}}],
    "blockDeviceMappings": [
        {
            "deviceName": "/dev/xvda",
            "ebs": {"volumeType": "gp3", "volumeSize": "100Gi", "encrypted": True, "deleteOnTermination": True},
        }
    ],
    "metadataOptions": {
        "httpEndpoint": "enabled",
        "httpProtocolIPv6": "disabled",
        "httpPutResponseHopLimit": 1,
        "httpTokens": "required",
    },
    "role": "KarpenterNodeRole-demo-gpu",
    "tags": {"gpu-fleet.io/cluster": "demo", "gpu-fleet.io/pool": "shared-a10g"},
}


def test_without_the_new_fields_the_manifest_is_what_it_was() -> None:
    assert body() == SINCE_EVER
    assert yaml.safe_dump(body(), sort_keys=False) == yaml.safe_dump(
        {key: SINCE_EVER[key] for key in body()}, sort_keys=False
    )


def test_exclusive_bottlerocket_is_what_it_was() -> None:
    found = body(demo_spec(nodePools__1__amiAlias=BOTTLEROCKET, devicePlugin__manage=False), pool="whole-a100")
    assert "userData" not in found
    assert [mapping["deviceName"] for mapping in found["blockDeviceMappings"]] == ["/dev/xvdb"]


@pytest.mark.parametrize(
    ("node_class", "field", "expected"),
    [
        ({"volume": {"throughput": 700, "iops": 4000}}, "blockDeviceMappings",
         [{"deviceName": "/dev/xvda", "ebs": {**SINCE_EVER["blockDeviceMappings"][0]["ebs"],  # type: ignore[index]
           "throughput": 700, "iops": 4000}}]),
        ({"volume": {"type": "io2", "iops": 500, "kmsKey": "alias/x"}, "volumeSize": 50}, "blockDeviceMappings",
         [{"deviceName": "/dev/xvda", "ebs": {"volumeType": "io2", "volumeSize": "50Gi", "encrypted": True,
           "deleteOnTermination": True, "iops": 500, "kmsKeyID": "alias/x"}}]),
        ({"volume": {"snapshot": "snap-0a", "initializationRate": 300}}, "blockDeviceMappings",
         [{"deviceName": "/dev/xvda", "ebs": {"volumeType": "gp3", "volumeSize": "100Gi", "deleteOnTermination": True,
           "snapshotID": "snap-0a", "volumeInitializationRate": 300}}]),
        ({"volume": {"encrypted": False}}, "blockDeviceMappings",
         [{"deviceName": "/dev/xvda", "ebs": {"volumeType": "gp3", "volumeSize": "100Gi", "encrypted": False,
           "deleteOnTermination": True}}]),
        ({"instanceStorePolicy": "RAID0"}, "instanceStorePolicy", "RAID0"),
        ({"instanceStorePolicy": "none"}, "instanceStorePolicy", None),
        ({"kubelet": {"maxPods": 30, "evictionSoft": {"pid.available": "10%"},
          "evictionSoftGracePeriod": {"pid.available": "1m"}, "clusterDNS": ["10.0.0.10"]}}, "kubelet",
         {"maxPods": 30, "evictionSoft": {"pid.available": "10%"}, "evictionSoftGracePeriod": {"pid.available": "1m"},
          "clusterDNS": ["10.0.0.10"]}),
        ({"kubelet": {}}, "kubelet", None),
        ({"placementGroup": {"name": "efa"}}, "placementGroupSelector", {"name": "efa"}),
        ({"networkInterfaces": [{"networkCardIndex": 0, "deviceIndex": 0, "interfaceType": "interface"}]},
         "networkInterfaces", [{"networkCardIndex": 0, "deviceIndex": 0, "interfaceType": "interface"}]),
        ({"subnets": [{"id": "subnet-0a"}, {"tags": {"a": "b"}}]}, "subnetSelectorTerms",
         [{"id": "subnet-0a"}, {"tags": {"a": "b"}}]),
        ({"securityGroups": [{"name": "gpu"}]}, "securityGroupSelectorTerms", [{"name": "gpu"}]),
        ({"associatePublicIPAddress": False}, "associatePublicIPAddress", False),
        ({"detailedMonitoring": True}, "detailedMonitoring", True),
        ({"metadataOptions": {"httpPutResponseHopLimit": 2}}, "metadataOptions",
         {"httpEndpoint": "enabled", "httpProtocolIPv6": "disabled", "httpPutResponseHopLimit": 2,
          "httpTokens": "required"}),
        ({"ami": {"family": "AL2023", "ids": ["ami-0a", "ami-0b"]}}, "amiSelectorTerms",
         [{"id": "ami-0a"}, {"id": "ami-0b"}]),
        ({"ami": {"family": "AL2023", "name": "ours-*", "owner": "self"}}, "amiSelectorTerms",
         [{"name": "ours-*", "owner": "self"}]),
        ({"ami": {"family": "Bottlerocket", "tags": {"a": "*"}}}, "amiFamily", "Bottlerocket"),
        ({"tags": {"team": "ml"}}, "tags",
         {"team": "ml", "gpu-fleet.io/cluster": "demo", "gpu-fleet.io/pool": "shared-a10g"}),
        ({"extra": {"connectionTracking": {"udpTimeout": 30}}}, "connectionTracking", {"udpTimeout": 30}),
        ({"userData": "#!/bin/sh\ntrue\n"}, "userData", "#!/bin/sh\ntrue\n"),
        ({"userData": ""}, "userData", None),
    ],
)  # fmt: skip
def test_each_field_is_where_the_ec2nodeclass_has_it(node_class: dict[str, Any], field: str, expected: Any) -> None:
    assert of_pool(**node_class).get(field) == expected


def test_bottlerocket_may_have_a_system_volume_beside_its_data() -> None:
    spec = demo_spec(nodePools__1__amiAlias=BOTTLEROCKET, nodePools__1__nodeClass={"osVolumeSize": 8})
    found = body(spec, pool="whole-a100")["blockDeviceMappings"]
    assert [(each["deviceName"], each["ebs"]["volumeSize"]) for each in found] == [
        ("/dev/xvda", "8Gi"), ("/dev/xvdb", "100Gi"),
    ]  # fmt: skip


# --- user data -------------------------------------------------------------------------------------------------------


def fast(user_data: str | None = None) -> list[tuple[str, str]]:
    """The parts of the user data of a pool that starts fast."""
    spec = demo_spec(
        nodePools__0__instanceTypes=["g5.2xlarge"],
        nodePools__0__nodeClass={"fastStart": True, **({"userData": user_data} if user_data else {})},
    )
    message = email.message_from_string(body(spec)["userData"])
    payload = message.get_payload()
    assert isinstance(payload, list)
    return [(part.get_content_type(), str(part.get_payload())) for part in payload]  # type: ignore[union-attr]


def test_fast_start_adds_a_node_config_behind_the_users_parts() -> None:
    ((kind, text),) = fast()
    assert kind == "application/node.eks.aws"
    assert yaml.safe_load(text) == {
        "apiVersion": "node.eks.aws/v1alpha1",
        "kind": "NodeConfig",
        "spec": {"featureGates": {"FastImagePull": True}},
    }
    assert next((kind, text.strip()) for kind, text in fast(NODE_CONFIG)) == (
        "application/node.eks.aws", NODE_CONFIG.strip(),
    )  # fmt: skip
    assert [kind for kind, _ in fast("#!/bin/sh\ntrue\n")] == ["text/x-shellscript", "application/node.eks.aws"]
    archive = (
        'MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary="gpu-fleet"\n\n--gpu-fleet\n'
        "Content-Type: text/x-shellscript\n\n#!/bin/sh\necho --gpu-fleet-\n\n--gpu-fleet--\n"
    )
    (script, ours) = fast(archive)
    assert "echo --gpu-fleet-" in script[1]
    assert "FastImagePull" in ours[1]


def test_fast_start_with_disks_of_its_own_needs_no_faster_volume() -> None:
    found = body(nodePools__0__instanceTypes=["g5.2xlarge"], nodeClass__fastStart=True)
    assert found["instanceStorePolicy"] == "RAID0"
    assert found["blockDeviceMappings"] == SINCE_EVER["blockDeviceMappings"]


def test_fast_start_without_disks_has_a_faster_volume() -> None:
    found = body(nodePools__0__instanceTypes=["p3.2xlarge"], nodeClass__fastStart=True)
    assert "instanceStorePolicy" not in found
    assert found["blockDeviceMappings"][0]["ebs"]["throughput"] == 600
    assert "FastImagePull: true" in found["userData"]


def settings(**changes: Any) -> dict[str, Any]:
    text = body(demo_spec(**{"nodePools__0__amiAlias": BOTTLEROCKET, **changes})).get("userData", "")
    return tomllib.loads(text).get("settings", {})


def test_bottlerocket_shares_by_its_settings() -> None:
    assert settings()["kubelet-device-plugins"]["nvidia"] == {
        "device-sharing-strategy": "time-slicing",
        "time-slicing": {"replicas": 4, "rename-by-default": False, "fail-requests-greater-than-one": True},
    }
    lax = settings(nodePools__0__sharing__failRequestsGreaterThanOne=False)
    assert lax["kubelet-device-plugins"]["nvidia"]["time-slicing"]["fail-requests-greater-than-one"] is False
    assert settings(nodePools__0__sharing={"mode": "exclusive"}) == {}


def test_what_the_user_sets_is_kept_beside_the_sharing() -> None:
    user = (
        '[settings.kubelet-device-plugins.nvidia]\ndevice-list-strategy = "envvar"\n[settings.ntp]\na = [1, "x\\ty"]\n'
    )
    found = settings(nodePools__0__nodeClass={"userData": user})
    assert found["ntp"] == {"a": [1, "x\ty"]}
    nvidia = found["kubelet-device-plugins"]["nvidia"]
    assert (nvidia["device-list-strategy"], nvidia["device-sharing-strategy"]) == ("envvar", "time-slicing")


def test_bottlerocket_pulls_in_parallel_when_it_starts_fast() -> None:
    found = settings(nodePools__0__instanceTypes=["g5.2xlarge"], nodePools__0__nodeClass={"fastStart": True})
    assert found["container-runtime"] == {"snapshotter": "soci"}
    assert found["container-runtime-plugins"] == {"soci-snapshotter": {"pull-mode": "parallel-pull-unpack"}}


DOCUMENT = """
title = "a \\"quoted\\" \\\\ text\\nof lines \\u007f ü"
number = 1
big = 1_000_000
real = 1.5
yes = true
when = 2026-07-14T10:00:00Z
day = 2026-07-14
list = [1, [2, 3], { a = "b", "c d" = 1 }]

["odd key"."x.y"]
a = 1

[empty]

[[tables]]
name = "one"

[[tables]]
name = "two"
"""


def test_toml_is_read_back_as_it_was_written() -> None:
    document = tomllib.loads(DOCUMENT)
    assert tomllib.loads(toml_text(document)) == document
    assert toml_text(document) == toml_text(dict(reversed(document.items())))
    with pytest.raises(TypeError):
        toml_text({"a": object()})


# --- Bottlerocket's own plugin ---------------------------------------------------------------------------------------


def test_our_plugin_keeps_off_nodes_that_bring_one() -> None:
    spec = demo_spec(nodePools__0__amiAlias=BOTTLEROCKET)
    shared, whole = spec.node_pools
    assert pool_labels(shared)["gpu-fleet.io/device-plugin"] == "built-in"
    assert pool_labels(whole)["gpu-fleet.io/device-plugin"] == "true"
    assert helm_values(spec, "device-plugin")["nodeSelector"] == {"gpu-fleet.io/device-plugin": "true"}
    # Its sharing is not in our ConfigMap, so a change of it is no new revision of the release.
    assert set(plugin_configs(spec)) == {"exclusive"}
    assert set(plugin_configs(demo_spec())) == {"exclusive", "time-slicing-4"}
    # Where the plugin belongs to others, labels stay as they are: another one would drift nodes that exist.
    theirs = demo_spec(nodePools__0__amiAlias=BOTTLEROCKET, devicePlugin__manage=False)
    assert pool_labels(theirs.node_pools[0])["gpu-fleet.io/device-plugin"] == "true"


def test_another_sharing_is_announced_as_drift_of_class_and_pool() -> None:
    four = demo_spec(nodePools__0__amiAlias=BOTTLEROCKET)
    eight = demo_spec(nodePools__0__amiAlias=BOTTLEROCKET, nodePools__0__sharing__replicas=8)
    was, now = (build("node_class", spec, pool=POOL)[0] for spec in (four, eight))
    assert [change.field for change in differences(class_fields(was), class_fields(now))] == ["userData"]
    was, now = (build("node_pool", spec, pool=POOL)[0] for spec in (four, eight))
    found = differences(pool_fields(was), pool_fields(now))
    assert [(each.field, each.was, each.now) for each in found] == [("sharing", "time-slicing-4", "time-slicing-8")]


@pytest.mark.parametrize(
    ("node_class", "fields"),
    [
        ({"volume": {"throughput": 700}}, ["blockDeviceMappings[0].ebs.throughput"]),
        ({"instanceStorePolicy": "RAID0"}, ["instanceStorePolicy"]),
        ({"kubelet": {"maxPods": 30}}, ["kubelet.maxPods"]),
        ({"userData": "#!/bin/sh\n"}, ["userData"]),
        ({"placementGroup": {"name": "x"}}, ["placementGroupSelector.name"]),
        ({"detailedMonitoring": True}, ["detailedMonitoring"]),
        ({"subnets": [{"id": "subnet-0a"}]}, []),
        ({"securityGroups": [{"id": "sg-0a"}]}, []),
        ({"extra": {"ipPrefixCount": 1}}, []),
    ],
)
def test_a_change_that_karpenter_hashes_is_announced(node_class: dict[str, Any], fields: list[str]) -> None:
    """aws/karpenter-provider-aws v1.14.1 pkg/apis/v1/ec2nodeclass.go: Hash; ``kubelet`` is hashed as a whole."""
    was, now = ({"spec": each} for each in (body(), of_pool(**node_class)))
    assert [change.field for change in differences(class_fields(was), class_fields(now))] == fields
