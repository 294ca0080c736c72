"""Tools on the worker; what concerns AWS is in tests/unit/hooks/kubernetes/test_eks_token.py, beside the cloud it
needs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpu_fleet.core.errors import SpecError, ToolError
from gpu_fleet.core.kubernetes.names import LABEL_NODE_POOL
from gpu_fleet.core.spec import parse_cluster
from gpu_fleet.hooks.files.clusters import load_cluster
from gpu_fleet.operators.preflight.checks import CheckToolsOperator, SelectNodeOperator
from tests.unit.airflow_context import TaskInstance, context, spec_at
from tests.unit.sandboxed import SandboxCluster, sandbox_cluster


def check(**changes: Any) -> Any:
    value = {**load_cluster("demo").to_json(), **changes}
    return CheckToolsOperator(task_id="check_tools").execute(context(TaskInstance(spec=parse_cluster(value))))


def helm_that_says(tmp_path: Path, text: str) -> str:
    path = tmp_path / "helm"
    path.write_text(f"#!/bin/sh\necho '{text}'\n")
    path.chmod(0o755)
    return str(path)


def test_a_supported_helm_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HELM_BIN", helm_that_says(tmp_path, "v4.2.3"))
    assert "4.2.3" in check()["helm"]


@pytest.mark.parametrize("text", ["v2.17.0", "v3.9.0", "", "not helm at all"])
def test_another_helm_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("HELM_BIN", helm_that_says(tmp_path, text))
    with pytest.raises(ToolError, match="HELM_BIN"):
        check()


def test_a_missing_helm_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HELM_BIN", str(tmp_path / "nope"))
    with pytest.raises(ToolError, match="nope"):
        check()


def test_without_managed_releases_helm_is_not_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HELM_BIN", str(tmp_path / "nope"))
    value = load_cluster("demo").to_json()
    found = check(
        karpenter={**value["karpenter"], "manage": False}, devicePlugin={**value["devicePlugin"], "manage": False}
    )
    assert found == {"helm": None, "notifiers": []}


def test_a_notifier_that_cannot_be_used_is_named_before_anything_is_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HELM_BIN", str(tmp_path / "nope"))
    with pytest.raises(SpecError) as caught:
        check(validation={"notify": [{"notifier": "nowhere.Notifier"}]})
    assert caught.value.field == "validation.notify[0].notifier"


def test_a_teardown_works_without_notifiers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HELM_BIN", str(tmp_path / "nope"))
    value = load_cluster("demo").to_json()
    keeps = {**value["teardown"], "uninstallKarpenter": False, "uninstallDevicePlugin": False}
    spec = parse_cluster({**value, "teardown": keeps, "validation": {"notify": [{"notifier": "nowhere.Notifier"}]}})
    operator = CheckToolsOperator(task_id="check_tools", to_uninstall=True)
    assert operator.execute(context(TaskInstance(spec=spec)))["notifiers"] == []


@pytest.mark.parametrize(
    ("kept", "needed"),
    [
        ({}, True),
        ({"uninstallKarpenter": False}, True),
        ({"uninstallDevicePlugin": False}, True),
        ({"uninstallKarpenter": False, "uninstallDevicePlugin": False}, False),
    ],
)
def test_a_teardown_needs_helm_only_for_what_it_uninstalls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: dict[str, bool], needed: bool
) -> None:
    monkeypatch.setenv("HELM_BIN", str(tmp_path / "nope"))
    value = load_cluster("demo").to_json()
    spec = parse_cluster({**value, "teardown": {**value["teardown"], **kept}})
    operator = CheckToolsOperator(task_id="check_tools", to_uninstall=True)
    if not needed:
        assert operator.execute(context(TaskInstance(spec=spec))) == {"helm": None, "notifiers": []}
        return
    with pytest.raises(ToolError, match="nope"):
        operator.execute(context(TaskInstance(spec=spec)))


# --- the one node ---
@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxCluster]:
    with sandbox_cluster(tmp_path_factory.mktemp("sandbox")) as found:
        for name, pool in (("n1", "shared-a10g"), ("n2", "whole-a100"), ("n3", "of-somebody-else")):
            metadata = {"name": name, "labels": {LABEL_NODE_POOL: pool}}
            found.kube.create({"apiVersion": "v1", "kind": "Node", "metadata": metadata})
        yield found


def select(cluster: SandboxCluster, **params: Any) -> Any:
    task_context = context(TaskInstance(spec=spec_at(str(cluster.access.path))), **params)
    return SelectNodeOperator(task_id="select_node").execute(task_context)


def test_a_run_about_no_single_node_selects_none(cluster: SandboxCluster) -> None:
    assert select(cluster, node=None) == select(cluster) == select(cluster, node="") == {"node": None, "pool": None}


def test_the_pool_of_the_one_node_is_found(cluster: SandboxCluster) -> None:
    assert select(cluster, node="n2") == {"node": "n2", "pool": "whole-a100"}


@pytest.mark.parametrize(
    ("params", "known"),
    [
        ({"node": "n9"}, "n1, n2"),
        ({"node": "n3"}, "n1, n2"),
        ({"node": "n2", "pools": ["shared-a10g"]}, "one of: n1"),
        ({"node": "x" * 10_000}, "n1, n2"),
        ({"node": "n1\nn2"}, "n1, n2"),
    ],
)
def test_an_unknown_node_is_named_with_the_known_ones(
    cluster: SandboxCluster, params: dict[str, Any], known: str
) -> None:
    with pytest.raises(SpecError, match=r"^params\.node: ") as refused:
        select(cluster, **params)
    assert known in refused.value.remedy
    assert "n3" not in refused.value.remedy
    assert len(refused.value.message) < 600
