"""Holding a pool while its nodes are being proven, against the sandbox's API server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from gpu_fleet.core.admission.hold import held_by
from gpu_fleet.core.kubernetes.kinds import NODE_CLAIM, NODE_POOL, ObjectRef
from gpu_fleet.core.kubernetes.names import LABEL_NODE_POOL
from gpu_fleet.core.manifests.build import build
from gpu_fleet.operators.proving import hold_pool, release_pool
from tests.unit.core.specs import demo_spec
from tests.unit.sandboxed import SandboxCluster, define_karpenter, sandbox_cluster

POOL, RUN, OTHER = "shared-a10g", "gpu_admit.demo/r1", "gpu_lifecycle.demo/r7"
REF = ObjectRef(NODE_POOL, POOL)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxCluster]:
    with sandbox_cluster(tmp_path_factory.mktemp("sandbox")) as cluster:
        for name in ("nodepools", "nodeclaims"):
            define_karpenter(cluster.kube, f"karpenter.sh_{name}.yaml")
        yield cluster


def manifest() -> dict[str, Any]:
    (found,) = build(
        "node_pool", demo_spec(nodePools__0__admission="gated", nodePools__0__limits={"nodes": 5}), pool=POOL
    )
    return found


@pytest.fixture
def cluster(shared: SandboxCluster) -> Iterator[SandboxCluster]:
    shared.kube.apply(manifest())
    spec = {"nodeClassRef": {"group": "karpenter.k8s.aws", "kind": "EC2NodeClass", "name": POOL}, "requirements": []}
    for name in ("c1", "c2"):
        metadata = {"name": name, "labels": {LABEL_NODE_POOL: POOL}}
        shared.kube.create({"apiVersion": "karpenter.sh/v1", "kind": "NodeClaim", "metadata": metadata, "spec": spec})
    yield shared
    shared.kube.delete(REF)
    for claim in shared.kube.list(NODE_CLAIM):
        shared.kube.delete(ObjectRef(NODE_CLAIM, claim["metadata"]["name"]))


def seen(cluster: SandboxCluster) -> dict[str, Any]:
    found = cluster.kube.get(REF)
    assert found is not None
    return found


def test_it_has_no_more_nodes_than_it_has_and_then_what_it_had(cluster: SandboxCluster) -> None:
    before = seen(cluster)
    assert hold_pool(cluster.kube, POOL, RUN) == 2
    during = seen(cluster)
    assert (during["spec"]["limits"]["nodes"], held_by(during)) == ("2", RUN)
    # Karpenter hashes the template, and that has not changed: no node drifts.
    assert during["spec"]["template"] == before["spec"]["template"]
    assert release_pool(cluster.kube, POOL, RUN)
    after = seen(cluster)
    assert after["spec"] == before["spec"]
    assert held_by(after) is None
    assert not release_pool(cluster.kube, POOL)


def test_only_its_own_run_or_a_clean_up_takes_a_hold_back(cluster: SandboxCluster) -> None:
    hold_pool(cluster.kube, POOL, RUN)
    assert not release_pool(cluster.kube, POOL, OTHER)
    assert seen(cluster)["spec"]["limits"]["nodes"] == "2"
    assert release_pool(cluster.kube, POOL)
    assert seen(cluster)["spec"]["limits"]["nodes"] == "5"


def test_the_hold_of_a_run_that_died_is_taken_back_by_applying_the_pool(cluster: SandboxCluster) -> None:
    hold_pool(cluster.kube, POOL, OTHER)
    cluster.kube.apply(manifest())
    found = seen(cluster)
    assert (found["spec"]["limits"]["nodes"], held_by(found)) == ("5", None)


def test_a_killed_task_that_holds_again_remembers_the_limit_from_before(cluster: SandboxCluster) -> None:
    hold_pool(cluster.kube, POOL, OTHER)
    hold_pool(cluster.kube, POOL, RUN)
    hold_pool(cluster.kube, POOL, RUN)
    assert release_pool(cluster.kube, POOL, RUN)
    assert seen(cluster)["spec"]["limits"]["nodes"] == "5"


def test_a_pool_that_is_gone_is_neither_held_nor_released(cluster: SandboxCluster) -> None:
    assert hold_pool(cluster.kube, "no-such-pool", RUN) is None
    assert not release_pool(cluster.kube, "no-such-pool")
