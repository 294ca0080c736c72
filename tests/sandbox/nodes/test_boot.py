"""What a node makes of its user data and its disks: pull times, instance store, Bottlerocket's own device plugin."""

from __future__ import annotations

import base64
import re
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from sandbox.aws.shapes import Shape
from sandbox.karpenter.cloudprovider.userdata import UserDataError, user_data
from sandbox.nodes.boot import decoded, node_config_of, of_node_config, of_settings, settings_of
from sandbox.nodes.gpus.plugin_config import Sharing, Strategy
from sandbox.nodes.runtime.images import Disk, pull_seconds, resolve
from tests.sandbox.nodes.cluster import Cluster, gpu_pod, node_class, node_pool, simulated

LARGE = "public.ecr.aws/deep-learning-containers/pytorch-training:2.9.0-gpu-py312-cu130-ubuntu24.04-ec2"
GATE = "apiVersion: node.eks.aws/v1alpha1\nkind: NodeConfig\nspec:\n  featureGates: {FastImagePull: true}\n"
SLICING = """
[settings.kubelet-device-plugins.nvidia]
device-sharing-strategy = "time-slicing"
[settings.kubelet-device-plugins.nvidia.time-slicing]
replicas = 4
rename-by-default = false
"""
CLAIM = {"metadata": {"name": "c", "labels": {"a": "b"}}, "spec": {"taints": [{"key": "k", "effect": "NoSchedule"}]}}


def shape(cpu: int = 8, memory_gib: int = 32, disk_gb: int = 450) -> Shape:
    return Shape("g5.2xlarge", cpu, memory_gib * 1024, 58, "amd64", 1, "A10G", 24_000, ("spot",), "nitro", disk_gb)


def boot(user: str = "", *, raid: bool = False, **of: int):
    spec = {"amiSelectorTerms": [{"alias": "al2023@v20260714"}], "userData": user}
    spec |= {"instanceStorePolicy": "RAID0"} if raid else {}
    text = base64.b64decode(user_data(CLAIM, {"spec": spec}, "demo")).decode()
    return of_node_config(node_config_of(text), shape(**of), 125.0)


def test_pulls_are_as_fast_as_the_disk_and_the_unpacking_allow():
    """gp3: 125 MiB/s; published are 4 to 6 minutes for 15 to 20 GB."""
    image = resolve(LARGE)
    assert image.megabytes == 15_000
    default, fast = pull_seconds(image, Disk(125.0)), pull_seconds(image, Disk(600.0, parallel=True))
    assert 220 < default < 360
    assert fast < default / 4
    # One layer after the other: a faster disk alone helps little.
    assert pull_seconds(image, Disk(1000.0)) > default / 1.5
    # amazon-eks-ami nodeadm/doc/examples.md: below 600 MiB/s the gate may make pulls longer.
    assert pull_seconds(image, Disk(599.0, parallel=True)) > pull_seconds(image, Disk(599.0))


def test_nodeadm_ignores_the_gate_on_small_machines():
    """amazon-eks-ami nodeadm/internal/containerd/config.go, UseSOCISnapshotter: 4 vCPUs and 7 GiB."""
    assert boot(GATE).disk.parallel
    assert boot(GATE, cpu=4, memory_gib=16).disk.parallel
    assert not boot(GATE, cpu=2).disk.parallel
    assert not boot(GATE, memory_gib=6).disk.parallel
    assert not boot().disk.parallel
    assert not boot(GATE.replace("true", "false")).disk.parallel


def test_raid0_needs_disks():
    found = boot(raid=True)
    assert (found.raid, found.disk.mibps) == (True, 1000.0)
    assert not boot(raid=True, disk_gb=0).raid
    assert boot().disk.mibps == 125.0


@pytest.mark.parametrize(
    "text",
    [
        GATE,
        f'MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary="B"\n\n--B\n'
        f"Content-Type: text/x-shellscript\n\n#!/bin/sh\ntrue\n--B\nContent-Type: application/node.eks.aws\n\n{GATE}\n"
        "--B--\n",
    ],
    ids=["NodeConfig", "archive"],
)
def test_karpenter_appends_its_node_config_to_whatever_the_class_has(text):
    """karpenter-provider-aws pkg/providers/amifamily/bootstrap/nodeadm.go."""
    made = base64.b64decode(user_data(CLAIM, {"spec": {"userData": text}}, "demo")).decode()
    spec = node_config_of(made)
    assert spec["featureGates"] == {"FastImagePull": True}
    assert spec["cluster"] == {"name": "demo"}
    assert spec["kubelet"]["flags"][0] == "--node-labels=a=b"


def test_what_is_no_mapping_is_run_as_a_script():
    """The same: a NodeConfig with a mistake in it is no error."""
    made = base64.b64decode(user_data(CLAIM, {"spec": {"userData": GATE + "\tx"}}, "demo")).decode()
    assert "text/x-shellscript" in made
    assert "featureGates" not in node_config_of(made)


def test_user_data_that_bottlerocket_cannot_read_makes_no_launch_template():
    spec = {"amiSelectorTerms": [{"alias": "bottlerocket@1.60.0"}], "userData": "a = = 1"}
    with pytest.raises(UserDataError, match="invalid UserData"):
        user_data(CLAIM, {"spec": spec}, "demo")


def test_bottlerocket_shares_as_its_settings_say():
    """bottlerocket-core-kit packages/nvidia-k8s-device-plugin/nvidia-k8s-device-plugin-conf: the defaults."""
    assert of_settings(settings_of(SLICING), shape(), 125.0, nvidia=True).sharing == Sharing(
        Strategy.TIME_SLICING, 4, "nvidia.com/gpu", one_only=True
    )
    bare = '[settings.kubelet-device-plugins.nvidia]\ndevice-sharing-strategy = "time-slicing"\n'
    assert of_settings(settings_of(bare), shape(), 125.0, nvidia=True).sharing == Sharing(
        Strategy.TIME_SLICING, 2, "nvidia.com/gpu.shared", one_only=True
    )
    assert of_settings({}, shape(), 125.0, nvidia=True).sharing == Sharing()
    assert of_settings(settings_of(SLICING), shape(), 125.0, nvidia=False).sharing is None


def test_bottlerocket_has_snapshotter_and_disks_in_its_settings():
    spec = {"amiSelectorTerms": [{"alias": "bottlerocket@1.60.0"}], "instanceStorePolicy": "RAID0"}
    spec["userData"] = '[settings.container-runtime]\nsnapshotter = "soci"\n'
    settings = settings_of(decoded(user_data(CLAIM, {"spec": spec}, "demo")))
    found = of_settings(settings, shape(), 125.0, nvidia=True)
    assert (found.raid, found.disk) == (True, Disk(1000.0, parallel=True))


# --- whole nodes -----------------------------------------------------------------------------------------------------


async def pulled(cluster, name: str) -> float:
    text = await cluster.event(name, "Pulled", "Successfully pulled")
    return float(re.search(r" in ([0-9.]+)s", text)[1])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    """Everything but a device plugin, with Karpenter installed."""
    async with simulated(tmp_path_factory.mktemp("boot"), speed=100.0) as made:
        await made.runtime_class()
        await made.install_karpenter()
        yield made


@pytest.mark.full
@pytest.mark.asyncio(loop_scope="module")
async def test_nodes_of_different_classes_pull_at_different_speeds(cluster):
    volume = {"volumeType": "gp3", "volumeSize": "100Gi", "throughput": 600}
    fast = node_class("fast", blockDeviceMappings=[{"deviceName": "/dev/xvda", "ebs": volume}], userData=GATE)
    await cluster.apply(node_class("slow"), fast)
    for name in ("slow", "fast"):
        # g5.8xlarge: an EBS bandwidth of 16 Gbit/s, above both volumes.
        await cluster.apply(node_pool(name, "g5.8xlarge", class_name=name))
        await cluster.apply(gpu_pod(f"pod-{name}", gpus=0, image=LARGE, nodeSelector={"karpenter.sh/nodepool": name}))
    slow_s, fast_s = await pulled(cluster, "pod-slow"), await pulled(cluster, "pod-fast")
    # Beside the injected wait there is the sandbox's own time, a hundredfold.
    assert slow_s >= 229
    assert 47 <= fast_s < slow_s / 2


@pytest.mark.full
@pytest.mark.asyncio(loop_scope="module")
async def test_a_bottlerocket_node_serves_its_gpus_without_any_pod(cluster):
    terms = [{"alias": "bottlerocket@v1.60.0"}]
    await cluster.apply(
        node_class("rocket", amiSelectorTerms=terms, userData=SLICING),
        node_pool("rocket", "g5.xlarge", class_name="rocket"),
        gpu_pod("wants", gpus=1, nodeSelector={"karpenter.sh/nodepool": "rocket"}),
    )

    async def runs() -> bool:
        found = await cluster.pod("wants")
        return bool(found and found["status"].get("phase") == "Running")

    await cluster.until(runs, lambda: cluster.kube.list("NodeClaim"), within=120.0)
    (node,) = await cluster.kube.list("Node", label_selector="karpenter.sh/nodepool=rocket")
    assert node["status"]["allocatable"]["nvidia.com/gpu"] == "4"
    assert node["status"]["nodeInfo"]["osImage"] == "Bottlerocket OS 1.60.0 (aws-k8s-1.35-nvidia)"
    assert "nvidia-device-plugin" not in str(await cluster.kube.list("DaemonSet"))
