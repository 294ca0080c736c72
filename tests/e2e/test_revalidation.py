"""The revalidation on a standing cluster: proven again, compared with its spec, busy, ended by hand."""

from __future__ import annotations

import json

import pytest

from tests.e2e.fleet import (
    CLUSTER,
    POOLS,
    SHARED,
    SYSTEM_NAMESPACE,
    VALIDATION_NAMESPACE,
    Fleet,
    Json,
    changes,
    until,
)

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(420)]

REVALIDATE = f"gpu_revalidate.{CLUSTER}"


def events(fleet: Fleet, topic: str) -> dict[str, int]:
    return {pool: len(fleet.events(f"gpu-fleet://{CLUSTER}/{pool}/{topic}")) for pool in POOLS}


def more(before: dict[str, int], by: int = 1) -> dict[str, int]:
    return {pool: count + by for pool, count in before.items()}


def assert_all_given_back(fleet: Fleet) -> None:
    assert fleet.kubectl.get("pods", "-n", VALIDATION_NAMESPACE) == []
    assert fleet.kubectl.get("pods", "-n", SYSTEM_NAMESPACE) == []
    assert fleet.turn_holder() == {}
    for node in fleet.nodes():
        assert "karpenter.sh/do-not-disrupt" not in node["metadata"].get("annotations", {})


def test_a_healthy_cluster_is_proven_again_and_left_as_it_was(standing: Fleet) -> None:
    before, claims = standing.snapshot(), set(standing.node_claims())
    ready, validated = events(standing, "ready"), events(standing, "validated")
    run = standing.run(REVALIDATE).succeeded()
    assert run.in_state("failed", "skipped", "upstream_failed") == []
    assert run.xcom("check_drift", "drift") == []
    assert changes(before, standing.snapshot()) == {}
    assert set(standing.node_claims()) == claims
    # A job that is scheduled on readiness is not started again by a proof.
    assert events(standing, "ready") == ready
    assert events(standing, "validated") == more(validated)
    assert_all_given_back(standing)


def patcher(fleet: Fleet) -> int:
    """Where the shared NodePool's managedFields name ``kubectl patch``."""
    (pool,) = fleet.kubectl.get("nodepool", SHARED, "--show-managed-fields")
    return [entry["manager"] for entry in pool["metadata"]["managedFields"]].index("kubectl-patch")


@pytest.mark.full
def test_drift_is_reported_and_holds_up_no_proof(standing: Fleet) -> None:
    validated = events(standing, "validated")
    limits = "/spec/limits/nodes"
    wanted = standing.kubectl.get("nodepool", SHARED)[0]["spec"]["limits"]["nodes"]

    def set_limit(value: str) -> None:
        patch = json.dumps([{"op": "replace", "path": limits, "value": value}])
        standing.kubectl.run("patch", "nodepool", SHARED, "--type=json", f"--patch={patch}")

    set_limit("9")
    try:
        run = standing.run(REVALIDATE)
    finally:
        set_limit(wanted)
        # kubectl would go on owning the field, and a later run that wants another limit would meet a conflict.
        path = "--patch=" + json.dumps([{"op": "remove", "path": f"/metadata/managedFields/{patcher(standing)}"}])
        standing.kubectl.run("patch", "nodepool", SHARED, "--type=json", path)
    assert (run.state, run.failed) == ("failed", ["check_drift"])
    (drift,) = run.xcom("check_drift", "drift")
    assert (drift["kind"], drift["object"], drift["field"]) == ("changed", f"NodePool {SHARED}", "spec.limits.nodes")
    assert (drift["wanted"], drift["found"]) == (wanted, "9")
    assert "Drifted" in run.log("check_drift") or "spec.limits.nodes" in run.log("check_drift")
    assert events(standing, "validated") == more(validated)


def test_a_taken_turn_is_neither_a_pass_nor_an_alarm(standing: Fleet) -> None:
    before = {topic: events(standing, topic) for topic in ("ready", "validated", "not-ready")}
    record = {
        "deployment": "elsewhere",
        "dag_id": "gpu_lifecycle.demo",
        "run_id": "theirs",
        "since": "2026-01-01T00:00:00Z",
    }

    def hold(data: Json | None) -> None:
        patch = json.dumps([{"op": "add", "path": "/data", "value": data or {}}])
        standing.kubectl.run("patch", "configmap", "turn", "-n", SYSTEM_NAMESPACE, "--type=json", f"--patch={patch}")

    hold(record)
    try:
        run = standing.run(REVALIDATE).succeeded()
        assert standing.turn_holder() == record
    finally:
        hold(None)
    assert run.xcom("preflight.acquire_turn", "skipped")["reason"] == "ClusterBusy"
    assert run.xcom("run_verdict").startswith("ClusterBusy: ")
    done = {"freeze_spec", "preflight.cluster_active", "preflight.select_node", "release_turn"}
    done |= {"reached_end", "run_verdict"}
    assert set(run.in_state("success")) == done
    assert set(run.in_state("skipped")) == set(run.tasks) - done
    assert {topic: events(standing, topic) for topic in before} == before


def test_an_unknown_node_is_named_with_the_known_ones(standing: Fleet) -> None:
    run = standing.run(REVALIDATE, {"node": "ip-1-2-3-4"})
    assert (run.state, run.failed) == ("failed", ["preflight.select_node"])
    log = run.log("preflight.select_node")
    assert "params.node" in log
    assert all(node["metadata"]["name"] in log for node in standing.nodes())
    assert_all_given_back(standing)


@pytest.mark.full
def test_a_run_that_a_person_marks_failed_gives_everything_back_and_stays_failed(standing: Fleet) -> None:
    run_id = standing.start(REVALIDATE)
    probe = f"validation.pool_{SHARED}.sharing"
    standing.wait_for_task(REVALIDATE, run_id, probe, "deferred")
    until("probe pods", lambda: standing.kubectl.get("pods", "-n", VALIDATION_NAMESPACE))
    standing.api.call("PATCH", f"/dags/{REVALIDATE}/dagRuns/{run_id}", json={"state": "failed"})
    run = standing.follow(REVALIDATE, run_id)
    assert run.state == "failed"
    states = run.states()
    assert states[probe] == "failed"
    assert states["run_verdict"] == "failed"
    assert states["release_turn"] == "success"
    assert {states[f"validation.pool_{pool}.clean_up"] for pool in POOLS} == {"success"}
    assert_all_given_back(standing)
