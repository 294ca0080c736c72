"""The stand-in charts, rendered and pulled by the real helm."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
import yaml

from sandbox import chartrepo
from sandbox.chartrepo import ChartError, ChartRepository

HELM = os.environ.get("HELM_BIN", "helm")
Objects = dict[tuple[str, str], dict[str, Any]]

_TWO_CONFIGS = {
    "exclusive": "version: v1\nflags:\n  migStrategy: none\n",
    "time-slicing-4": (
        "version: v1\nsharing:\n  timeSlicing:\n    resources:\n    - {name: nvidia.com/gpu, replicas: 4}\n"
    ),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Helm's own files, away from the user's."""
    return tmp_path_factory.mktemp("helm")


def _helm(home: Path, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {"HOME": str(home), "PATH": os.environ["PATH"], "HELM_CACHE_HOME": str(home / "cache")}
    return subprocess.run(
        [HELM, *arguments], env=environment, cwd=cwd, capture_output=True, text=True, timeout=60, check=False
    )


def _render(
    home: Path, chart: str, values: dict[str, Any], *, release: str | None = None, namespace: str = "system"
) -> Objects:
    file = home / "values.yaml"
    file.write_text(yaml.safe_dump(values))
    archive = next(item for item in chartrepo.stand_ins() if item.name == chart)
    path = home / archive.file_name
    path.write_bytes(archive.data)
    done = _helm(home, "template", release or chart, str(path), "--namespace", namespace, "--values", str(file))
    assert done.returncode == 0, done.stderr
    documents = [item for item in yaml.safe_load_all(done.stdout) if item]
    return {(item["kind"], item["metadata"]["name"]): item for item in documents}


def _fails(home: Path, chart: str, values: dict[str, Any], namespace: str = "system") -> str:
    file = home / "values.yaml"
    file.write_text(yaml.safe_dump(values))
    done = _helm(
        home, "template", chart, str(chartrepo.CHARTS / chart), "--namespace", namespace, "--values", str(file)
    )
    assert done.returncode != 0
    return done.stderr


def _container(workload: dict[str, Any], name: str) -> dict[str, Any]:
    pod = workload["spec"]["template"]["spec"]
    found: dict[str, Any] = next(
        item for item in [*pod["containers"], *pod.get("initContainers", [])] if item["name"] == name
    )
    return found


def _environment(container: dict[str, Any]) -> dict[str, Any]:
    return {item["name"]: item.get("value") for item in container.get("env", [])}


# Device plugin


def test_device_plugin_has_the_real_chart_s_objects(home: Path) -> None:
    objects = _render(home, "nvidia-device-plugin", {"config": {"map": _TWO_CONFIGS, "default": "exclusive"}})
    assert set(objects) == {
        ("ServiceAccount", "nvidia-device-plugin-service-account"),
        ("ConfigMap", "nvidia-device-plugin-configs"),
        ("ClusterRole", "nvidia-device-plugin-role"),
        ("ClusterRoleBinding", "nvidia-device-plugin-role-binding"),
        ("DaemonSet", "nvidia-device-plugin"),
        ("DaemonSet", "nvidia-device-plugin-mps-control-daemon"),
    }
    data = objects["ConfigMap", "nvidia-device-plugin-configs"]["data"]
    assert {name: yaml.safe_load(text) for name, text in data.items()} == {
        name: yaml.safe_load(text) for name, text in _TWO_CONFIGS.items()
    }
    # The trap: whoever looks for pods by labels finds those of both.
    selectors = [
        objects["DaemonSet", name]["spec"]["selector"]
        for name in ("nvidia-device-plugin", "nvidia-device-plugin-mps-control-daemon")
    ]
    assert selectors[0] == selectors[1]


def test_device_plugin_is_named_after_the_release(home: Path) -> None:
    objects = _render(home, "nvidia-device-plugin", {}, release="gpu")
    assert ("DaemonSet", "gpu-nvidia-device-plugin") in objects
    assert ("DaemonSet", "gpu-nvidia-device-plugin-mps-control-daemon") in objects


def test_several_configs_bring_the_config_manager_and_one_none(home: Path) -> None:
    values = {"config": {"map": _TWO_CONFIGS, "default": "exclusive"}}
    daemon_set = _render(home, "nvidia-device-plugin", values)["DaemonSet", "nvidia-device-plugin"]
    manager = _environment(_container(daemon_set, "nvidia-device-plugin-init"))
    assert manager["NODE_LABEL"] == "nvidia.com/device-plugin.config"
    assert (manager["DEFAULT_CONFIG"], manager["ONESHOT"]) == ("exclusive", "true")
    sidecar = _environment(_container(daemon_set, "nvidia-device-plugin-sidecar"))
    assert (sidecar["ONESHOT"], sidecar["PROCESS_TO_SIGNAL"]) == ("false", "nvidia-device-plugin")
    assert _environment(_container(daemon_set, "nvidia-device-plugin-ctr"))["CONFIG_FILE"] == "/config/config.yaml"
    volumes = {item["name"]: item for item in daemon_set["spec"]["template"]["spec"]["volumes"]}
    assert volumes["available-configs"]["configMap"]["name"] == "nvidia-device-plugin-configs"

    plain = _render(home, "nvidia-device-plugin", {})["DaemonSet", "nvidia-device-plugin"]
    assert [item["name"] for item in plain["spec"]["template"]["spec"]["containers"]] == ["nvidia-device-plugin-ctr"]
    assert "initContainers" not in plain["spec"]["template"]["spec"]

    external = _render(home, "nvidia-device-plugin", {"config": {"name": "elsewhere"}})
    assert not [key for key in external if key[0] == "ConfigMap"]
    pod = external["DaemonSet", "nvidia-device-plugin"]["spec"]["template"]["spec"]
    assert {"name": "available-configs", "configMap": {"name": "elsewhere"}} in pod["volumes"]


def test_changed_config_rolls_the_pods_and_nothing_else_does(home: Path) -> None:
    def checksum(configs: dict[str, str], **values: Any) -> str:
        config = {"map": configs, "default": "exclusive"}
        objects = _render(home, "nvidia-device-plugin", {"config": config, **values})
        template = objects["DaemonSet", "nvidia-device-plugin"]["spec"]["template"]
        return str(template["metadata"]["annotations"]["checksum/config"])

    changed = {**_TWO_CONFIGS, "time-slicing-4": _TWO_CONFIGS["time-slicing-4"].replace("4}", "8}")}
    assert checksum(_TWO_CONFIGS) != checksum(changed)
    assert checksum(_TWO_CONFIGS) == checksum(_TWO_CONFIGS, nodeSelector={"a": "b"})


def test_pods_are_placed_as_values_say(home: Path) -> None:
    defaults = _render(home, "nvidia-device-plugin", {"runtimeClassName": "nvidia", "nvidiaDriverRoot": "/"})
    pod = defaults["DaemonSet", "nvidia-device-plugin"]["spec"]["template"]["spec"]
    terms = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert "nvidia.com/gpu.present" in [term["matchExpressions"][0]["key"] for term in terms]
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in pod["tolerations"]
    assert (pod["runtimeClassName"], pod["priorityClassName"]) == ("nvidia", "system-node-critical")
    assert "driver-root" in [item["name"] for item in pod["volumes"]]
    mps = defaults["DaemonSet", "nvidia-device-plugin-mps-control-daemon"]["spec"]["template"]["spec"]
    assert mps["nodeSelector"] == {"nvidia.com/mps.capable": "true"}
    assert mps["hostPID"] is True

    chosen = _render(
        home, "nvidia-device-plugin", {"nodeSelector": {"pool": "a"}, "tolerations": [{"operator": "Exists"}]}
    )
    pod = chosen["DaemonSet", "nvidia-device-plugin"]["spec"]["template"]["spec"]
    assert (pod["nodeSelector"], pod["tolerations"]) == ({"pool": "a"}, [{"operator": "Exists"}])
    assert "runtimeClassName" not in pod


def test_values_become_environment_variables_that_win_over_the_file(home: Path) -> None:
    values = {"migStrategy": "single", "failOnInitError": False, "deviceListStrategy": "envvar"}
    container = _container(
        _render(home, "nvidia-device-plugin", values)["DaemonSet", "nvidia-device-plugin"], "nvidia-device-plugin-ctr"
    )
    found = _environment(container)
    assert found["MIG_STRATEGY"] == "single"
    assert found["FAIL_ON_INIT_ERROR"] == "false"
    assert found["DEVICE_LIST_STRATEGY"] == "envvar"
    assert "PASS_DEVICE_SPECS" not in found
    assert re.fullmatch(r"nvcr\.io/nvidia/k8s-device-plugin:v\d+\.\d+\.\d+", container["image"])


def test_gfd_brings_node_feature_discovery_with_it(home: Path) -> None:
    objects = _render(home, "nvidia-device-plugin", {"gfd": {"enabled": True}})
    assert ("DaemonSet", "nvidia-device-plugin-gpu-feature-discovery") in objects
    nfd = "nvidia-device-plugin-node-feature-discovery"
    assert ("Deployment", f"{nfd}-master") in objects
    assert ("Deployment", f"{nfd}-gc") in objects
    prune = objects["Job", f"{nfd}-prune"]["metadata"]["annotations"]
    assert prune["helm.sh/hook"] == "post-delete"
    # The trap: its worker does not tolerate the taint that GPU nodes usually have.
    worker = objects["DaemonSet", f"{nfd}-worker"]["spec"]["template"]["spec"]["tolerations"]
    assert [item["value"] for item in worker if item["key"] == "nvidia.com/gpu"] == ["present"]


@pytest.mark.parametrize(
    ("values", "namespace", "message"),
    [
        ({}, "default", "Running in the 'default' namespace is not recommended"),
        ({"config": {"map": _TWO_CONFIGS}}, "system", "A default config must be provided"),
        ({"config": {"map": _TWO_CONFIGS, "name": "x", "default": "exclusive"}}, "system", "Only one of 'config.name'"),
        ({"namespace": "x"}, "system", "no longer supported"),
        ({"migStrategy": "some"}, "system", "don't meet the specifications of the schema"),
        ({"config": {"map": {"a": {"version": "v1"}}}}, "system", "don't meet the specifications of the schema"),
    ],
)
def test_device_plugin_refuses(home: Path, values: dict[str, Any], namespace: str, message: str) -> None:
    assert message in _fails(home, "nvidia-device-plugin", values, namespace)


@pytest.mark.parametrize(
    "config",
    [{"map": {"only": "version: v1"}}, {"map": {"default": "version: v1", "b": "version: v1"}}],
    ids=["a single one", "one named default"],
)
def test_default_config_may_go_without_saying(home: Path, config: dict[str, Any]) -> None:
    assert ("ConfigMap", "nvidia-device-plugin-configs") in _render(home, "nvidia-device-plugin", {"config": config})


# Karpenter


def test_karpenter_has_the_real_chart_s_objects(home: Path) -> None:
    values = {"settings": {"clusterName": "demo", "interruptionQueue": "demo", "featureGates": {"nodeOverlay": True}}}
    objects = _render(home, "karpenter", values, namespace="kube-system")
    for key in (
        ("Deployment", "karpenter"),
        ("Service", "karpenter"),
        ("ServiceAccount", "karpenter"),
        ("PodDisruptionBudget", "karpenter"),
        ("ClusterRole", "karpenter-core"),
        ("ClusterRole", "karpenter"),
        ("ClusterRole", "karpenter-admin"),
        ("Role", "karpenter-dns"),
    ):
        assert key in objects
    deployment = objects["Deployment", "karpenter"]["spec"]
    pod = deployment["template"]["spec"]
    found = _environment(pod["containers"][0])
    assert (found["CLUSTER_NAME"], found["INTERRUPTION_QUEUE"]) == ("demo", "demo")
    assert "NodeOverlay=true" in found["FEATURE_GATES"]
    own = {"app.kubernetes.io/name": "karpenter", "app.kubernetes.io/instance": "karpenter"}
    assert deployment["selector"]["matchLabels"] == own
    anti = pod["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][0]
    assert anti == {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": own}}
    assert pod["topologySpreadConstraints"][0]["labelSelector"] == {"matchLabels": own}
    never = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert never[0]["matchExpressions"][0] == {"key": "karpenter.sh/nodepool", "operator": "DoesNotExist"}


def test_karpenter_wants_a_cluster_name(home: Path) -> None:
    assert "without a valid settings.clusterName" in _fails(home, "karpenter", {})


def test_crds_are_those_that_karpenter_serves(home: Path) -> None:
    objects = _render(home, "karpenter-crd", {})
    assert {name for _, name in objects} == {
        "nodepools.karpenter.sh",
        "nodeclaims.karpenter.sh",
        "nodeoverlays.karpenter.sh",
        "ec2nodeclasses.karpenter.k8s.aws",
    }
    for crd in objects.values():
        version = crd["spec"]["versions"][0]
        assert version["subresources"]["status"] == {}
        assert crd["spec"]["scope"] == "Cluster"
        _assert_structural(version["schema"]["openAPIV3Schema"], crd["metadata"]["name"])


def _assert_structural(schema: dict[str, Any], path: str) -> None:
    """Every value has a type (kubernetes.io: 'Specifying a structural schema'), every pattern compiles."""
    assert "type" in schema or schema.get("x-kubernetes-int-or-string"), path
    if "pattern" in schema:
        re.compile(schema["pattern"])
    for name, child in schema.get("properties", {}).items():
        _assert_structural(child, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            _assert_structural(schema[key], f"{path}.{key}")
    for name in schema.get("required", []):
        assert name in schema["properties"], f"{path}: required {name} is not declared"


# Repository


@pytest_asyncio.fixture
async def repository() -> AsyncIterator[ChartRepository]:
    served = ChartRepository()
    await served.start()
    yield served
    await served.close()


async def _pull(home: Path, target: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    import asyncio

    return await asyncio.to_thread(_helm, home, "pull", *arguments, cwd=target)


async def test_every_version_is_pulled_from_both_kinds_of_repository(
    repository: ChartRepository, home: Path, tmp_path: Path
) -> None:
    mirror = repository.mirrors()["https://nvidia.github.io/k8s-device-plugin"]
    done = await _pull(home, tmp_path, "nvidia-device-plugin", "--repo", mirror, "--version", "0.17.4")
    assert done.returncode == 0, done.stderr
    pulled = chartrepo.read_archive(tmp_path / "nvidia-device-plugin-0.17.4.tgz")
    assert (pulled.metadata["version"], pulled.metadata["appVersion"]) == ("0.17.4", "0.17.4")
    address = f"oci://127.0.0.1:{repository.port}/karpenter/karpenter"
    done = await _pull(home, tmp_path, address, "--version", "1.14.1", "--plain-http")
    assert done.returncode == 0, done.stderr
    chart = chartrepo.read_archive(tmp_path / "karpenter-1.14.1.tgz")
    assert chart.digest == next(
        item.digest for item in repository.archives if (item.name, item.version) == ("karpenter", "1.14.1")
    )
    missing = await _pull(home, tmp_path, address, "--version", "9.9.9", "--plain-http")
    assert missing.returncode != 0
    served = yaml.safe_load(chartrepo.index(repository.archives))["entries"]
    assert {name: [entry["version"] for entry in entries] for name, entries in served.items()} == {
        "nvidia-device-plugin": ["0.20.0", "0.19.3", "0.17.4", "0.17.0"],
        "karpenter": ["1.14.1", "1.13.0"],
        "karpenter-crd": ["1.14.1", "1.13.0"],
    }


async def test_unknown_files_and_blobs_are_not_found(repository: ChartRepository) -> None:
    base = f"http://127.0.0.1:{repository.port}"
    async with aiohttp.ClientSession() as session:
        for path in ("/charts/nothing.tgz", "/v2/a/b/manifests/1", "/v2/a/b/tags/list", "/v2/a/blobs/sha256:0"):
            async with session.get(base + path) as reply:
                assert reply.status == 404, path


def test_archives_are_the_same_bytes_every_time() -> None:
    assert [item.digest for item in chartrepo.stand_ins()] == [item.digest for item in chartrepo.stand_ins()]


def test_real_archives_take_the_stand_ins_place(tmp_path: Path) -> None:
    with pytest.raises(ChartError, match=r"no \*\.tgz"):
        ChartRepository(tmp_path)
    other = tmp_path / "source" / "karpenter"
    shutil.copytree(chartrepo.CHARTS / "karpenter-crd", other)
    (tmp_path / "karpenter-9.9.9.tgz").write_bytes(chartrepo.package(other, "9.9.9").data)
    served = ChartRepository(tmp_path)
    assert [(item.name, item.version) for item in served.archives] == [("karpenter-crd", "9.9.9")]
    (tmp_path / "broken.tgz").write_bytes(b"no archive")
    with pytest.raises(ChartError, match=r"broken\.tgz is not a chart archive"):
        ChartRepository(tmp_path)


def test_node_selector_and_affinity_reach_all_three_daemon_sets_and_replace_the_default_terms(home: Path) -> None:
    """As in NVIDIA/k8s-device-plugin v0.20.0 ``daemonset-{device-plugin,mps-control-daemon,gfd}.yml``: the MPS daemon's
    own selector comes on top; Helm merges maps and replaces lists, so given terms leave nothing of the default ones.
    """
    terms = [{"matchExpressions": [{"key": "example.com/mine", "operator": "In", "values": ["true"]}]}]
    affinity = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}
    values = {"nodeSelector": {"example.com/mine": "true"}, "affinity": affinity, "gfd": {"enabled": True}}
    objects = _render(home, "nvidia-device-plugin", values)
    pods = {
        name: item["spec"]["template"]["spec"]
        for (kind, name), item in objects.items()
        if kind == "DaemonSet" and "node-feature-discovery" not in name
    }
    assert len(pods) == 3
    for name, pod in pods.items():
        mps = {"nvidia.com/mps.capable": "true"} if "mps" in name else {}
        assert pod["nodeSelector"] == {**mps, "example.com/mine": "true"}
        assert pod["affinity"] == affinity
