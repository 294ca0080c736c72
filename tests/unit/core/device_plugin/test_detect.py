"""What counts as a device plugin for nvidia.com/gpu, and what does not."""

from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core.device_plugin.detect import Evidence, Ours, daemon_set_plugins, plugin_in, plugins_of_others
from tests.unit.core.neighbour_objects import PLUGINS, daemon_set, ours, static
from tests.unit.core.specs import demo_spec


@pytest.mark.parametrize(
    ("item", "evidence"),
    [
        (static(), Evidence.IMAGE),
        (daemon_set("mirrored", image="1.dkr.ecr.us-west-2.amazonaws.com/nvidia/k8s-device-plugin@sha256:0"), "image"),
        (daemon_set("fork", image="registry.local/nvidia-device-plugin:1"), "image"),
        # NVIDIA's image, whatever it mounts: the chart can name the folder by a variable.
        (daemon_set("no mount", mounts=None), "image"),
        (daemon_set("in-house", image="registry.local/ours:1"), "folder"),
        (daemon_set("trailing slash", image="registry.local/ours:1", mounts=f"{PLUGINS}/"), "folder"),
        (daemon_set("aws-ebs-csi-node", image="public.ecr.aws/ebs-csi-driver:v1", mounts="/var/lib/kubelet"), "parent"),
        (daemon_set("whole host", image="registry.local/agent:1", mounts="/"), "parent"),
        (daemon_set("node-exporter", image="quay.io/node-exporter:1", mounts="/", read_only=True), None),
        (daemon_set("reads", image="registry.local/monitor:1", read_only=True), None),
        (daemon_set("pod-resources", image="nvcr.io/dcgm-exporter:4", mounts="/var/lib/kubelet/pod-resources"), None),
        (daemon_set("like it", image="registry.local/x:1", mounts="/var/lib/kubelet/device-plugins-old"), None),
        (daemon_set("gfd", command=["gpu-feature-discovery"], mounts=None), None),
        (daemon_set("mps", command=["mps-control-daemon"], mounts=None), None),
        (daemon_set("efa", image="602.dkr.ecr.us-west-2.amazonaws.com/eks/aws-efa-k8s-device-plugin:v0.5"), None),
        (daemon_set("neuron", image="public.ecr.aws/neuron/neuron-device-plugin:2"), None),
        (daemon_set("amd", image="docker.io/rocm/k8s-device-plugin:1"), None),
        ({"metadata": {"name": "empty"}}, None),
    ],
    ids=lambda value: value["metadata"]["name"] if isinstance(value, dict) else "",
)
def test_by_image_or_by_what_it_can_write_to(item: dict[str, Any], evidence: str | None) -> None:
    found = daemon_set_plugins([item])
    assert [plugin.found.evidence for plugin in found] == ([evidence] if evidence else [])


def test_its_config_is_found() -> None:
    pod = daemon_set("x", config_map="theirs", managed=True, default="four")["spec"]["template"]["spec"]
    found = plugin_in(pod)
    assert found is not None
    assert (found.config_map, found.by_label, found.default) == ("theirs", True, "four")


def test_the_release_that_the_spec_manages_is_not_a_stranger() -> None:
    same_name = daemon_set("nvidia-device-plugin", "kube-system")
    other_release = ours()
    other_release["metadata"]["annotations"]["meta.helm.sh/release-namespace"] = "team-b"
    sets = [ours(), same_name, other_release]
    refs = [plugin.ref for plugin in plugins_of_others(sets, Ours.of(demo_spec()))]
    assert refs == ["kube-system/nvidia-device-plugin", "nvidia-device-plugin/nvidia-device-plugin"]
    assert len(plugins_of_others([ours()], Ours.of(demo_spec(devicePlugin__manage=False)))) == 1


def test_a_parent_mount_alone_is_no_plugin_and_a_person_may_vouch_for_the_folder_but_not_for_nvidias_image() -> None:
    sets = [
        daemon_set("csi", image="x/csi:1", mounts="/var/lib/kubelet"),
        daemon_set("fuse", image="x/fuse:1"),
        daemon_set("kvm", image="x/kvm:1"),
        static(),
    ]
    spec = demo_spec(devicePlugin__coexistsWith=["kube-system/fuse", "kube-system/nvidia-device-plugin-daemonset"])
    refs = [plugin.ref for plugin in plugins_of_others(sets, Ours.of(spec))]
    assert refs == ["kube-system/kvm", "kube-system/nvidia-device-plugin-daemonset"]
    assert Ours.from_json(Ours.of(spec).to_json()) == Ours(
        "nvidia-device-plugin", frozenset(spec.device_plugin.coexists_with)
    )
