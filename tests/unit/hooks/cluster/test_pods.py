"""Looking for pods in a cluster that has many others: what is asked for, and what is kept of it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from gpu_fleet.core.kubernetes.kinds import POD, ObjectRef
from gpu_fleet.hooks.cluster.pods import pods_on, unbound_pods
from gpu_fleet.hooks.kubernetes.hook import ClusterAccess, KubeClient
from tests.unit.hooks.scripted_api import Reply, ScriptedApi, serving
from tests.unit.sandboxed import SandboxCluster, sandbox_cluster

PACKAGE = Path(__file__).resolve().parents[4] / "plugins" / "gpu_fleet"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxCluster]:
    with sandbox_cluster(tmp_path_factory.mktemp("sandbox")) as found:
        for name, node, nominated, phase in (
            ("on-n1", "n1", "", "Running"),
            ("done-on-n1", "n1", "", "Succeeded"),
            ("on-n2", "n2", "", "Running"),
            ("coming-to-n1", "", "n1", "Pending"),
            ("coming-to-n2", "", "n2", "Pending"),
            ("waiting", "", "", "Pending"),
        ):
            spec: dict[str, Any] = {"containers": [{"name": "c", "image": "x"}]} | ({"nodeName": node} if node else {})
            metadata = {"name": name, "namespace": "default"}
            found.kube.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
            status = {"phase": phase} | ({"nominatedNodeName": nominated} if nominated else {})
            found.kube.patch(ObjectRef(POD, name, "default"), {"status": status}, subresource="status")
        yield found


def names(pods: list[dict[str, Any]]) -> set[str]:
    return {pod["metadata"]["name"] for pod in pods}


def test_pods_of_a_node_are_those_on_it_and_those_that_have_their_place_there(cluster: SandboxCluster) -> None:
    found = pods_on(cluster.kube, ["n1", "", "n3"])
    assert names(found) == {"on-n1", "done-on-n1", "coming-to-n1"}
    assert {pod["kind"] for pod in found} == {"Pod"}


def test_without_a_node_nothing_is_asked() -> None:
    assert pods_on(None, ["", ""]) == []  # type: ignore[arg-type]


def test_pods_without_a_node_are_thinned_out(cluster: SandboxCluster) -> None:
    assert names(unbound_pods(cluster.kube, lambda pod: "nominatedNodeName" not in pod["status"])) == {"waiting"}


def test_the_api_server_is_asked_for_the_pods_of_these_nodes_alone(tmp_path: Path) -> None:
    """It finds them by its index; what is dropped here would have been read, sent and parsed before."""
    with serving(ScriptedApi(Reply(body={"items": [], "metadata": {}}))) as api:
        path = api.kubeconfig(tmp_path, token="t0")
        kube = KubeClient(ClusterAccess("kubeconfig", None, None, None, path=str(path)))
        assert pods_on(kube, ["n2", "n1", "n2"]) == []
    asked = [parse_qs(urlsplit(request.path).query).get("fieldSelector") for request in api.requests]
    assert asked == [["spec.nodeName="], ["spec.nodeName=n1"], ["spec.nodeName=n2"]]


def test_a_page_is_reduced_before_the_next_one_comes(tmp_path: Path) -> None:
    """Of 50,000 pods a task would otherwise hold every one."""
    kept: list[int] = []

    def page(number: int) -> Reply:
        metadata = {"continue": str(number + 1)} if number < 2 else {}
        items = [{"metadata": {"name": f"{number}-{index}"}} for index in range(3)]
        return Reply(body={"items": items, "metadata": metadata})

    def keep(pod: dict[str, Any]) -> bool:
        kept.append(len(api.requests))
        return bool(pod["metadata"]["name"].endswith("-1"))

    with serving(ScriptedApi(page(0), page(1), page(2))) as api:
        path = api.kubeconfig(tmp_path, token="t0")
        kube = KubeClient(ClusterAccess("kubeconfig", None, None, None, path=str(path)))
        assert [pod["metadata"]["name"] for pod in kube.list(POD, keep=keep)] == ["0-1", "1-1", "2-1"]
    assert kept == [1] * 3 + [2] * 3 + [3] * 3


def test_nobody_lists_the_pods_of_a_whole_cluster() -> None:
    """Each look names a namespace, a selector, or what is kept of the pages."""
    unbounded = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr == "list"
                and [ast.unparse(argument) for argument in node.args] == ["POD"]
                and not {word.arg for word in node.keywords} & {"label_selector", "keep"}
                and not any("spec.nodeName" in ast.unparse(word.value) for word in node.keywords)
            ):
                unbounded.append(f"{path.relative_to(PACKAGE)}:{node.lineno}")
    assert unbounded == []
