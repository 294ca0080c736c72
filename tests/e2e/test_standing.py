"""Capacity that stands, and lifecycle runs over it: a second one, one whose approval is rejected, one that a person
ends."""

from __future__ import annotations

import pytest

from tests.e2e.fleet import (
    CLUSTER,
    LIFECYCLE,
    POOLS,
    SHARED,
    STANDING,
    SYSTEM_NAMESPACE,
    TEARDOWN,
    VALIDATION_NAMESPACE,
    Fleet,
    changes,
    until,
)
from tests.e2e.revalidation import PROTECTION, left_behind

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(420)]

RELEASES = {"karpenter-crd", "karpenter", "nvidia-device-plugin"}


def new_ready_events(fleet: Fleet) -> dict[str, int]:
    return {pool: len(fleet.events(f"gpu-fleet://{CLUSTER}/{pool}/ready")) for pool in POOLS}


# --- a second run ----------------------------------------------------------------------------------------------------
@pytest.mark.real_api
def test_capacity_stands_proven_and_validated(standing: Fleet) -> None:
    assert {pool: sorted(counts) for pool, counts in standing.allocatable().items()} == STANDING
    releases = standing.releases()
    assert set(releases) == RELEASES
    for name, release in releases.items():
        assert (release["status"], release["proven_revision"]) == ("deployed", release["revision"]), name
    # Every instance that costs money is a node that was asked for, and nobody holds the turn.
    assert len(standing.instances()) == len(standing.node_claims()) == len(standing.nodes()) == 3
    assert standing.turn_holder() == {}
    for namespace in ("gpu-fleet-system", "gpu-fleet-validation"):
        assert standing.kubectl.get("pods", "-n", namespace) == []
    for node in standing.nodes():
        assert "karpenter.sh/do-not-disrupt" not in node["metadata"].get("annotations", {})


@pytest.mark.real_api
def test_second_run_changes_nothing(standing: Fleet) -> None:
    before, instances, ready = standing.snapshot(), set(standing.instances()), new_ready_events(standing)
    assert all(count >= 1 for count in ready.values())
    run = standing.lifecycle().succeeded()
    assert run.failed == []
    # Every object: its UID, and its generation or (where the server counts none) its content. That covers Helm's
    # Secrets and the ledgers, NodePools, NodeClaims, Nodes, the plugin's pods and the turn, which is empty again.
    assert changes(before, standing.snapshot()) == {}
    assert set(standing.instances()) == instances
    assert new_ready_events(standing) == ready


@pytest.mark.full
def test_rejected_approval_keeps_everything(standing: Fleet) -> None:
    before = standing.snapshot()
    run = standing.run(TEARDOWN, answer="Reject").succeeded()
    states = run.states()
    assert {states["teardown.plan"], states["teardown.approve"]} == {"success"}
    assert {states["teardown.freeze_pools"], states["teardown.delete_node_pools"]} == {"skipped"}
    assert states["teardown.leak_check"] == "skipped"
    assert changes(before, standing.snapshot()) == {}
    assert standing.turn_holder() == {}


# --- ended by hand ----------------------------------------------------------------------------------------------------
@pytest.mark.full
def test_a_run_marked_failed_during_validation_leaves_no_protection_probe_placeholder_or_turn(standing: Fleet) -> None:
    claims = set(standing.node_claims())
    run_id = standing.start(LIFECYCLE, {"until": "validated"})
    probe = f"validation.pool_{SHARED}.sharing"
    standing.wait_for_task(LIFECYCLE, run_id, probe, "deferred")
    until("probe pods", lambda: standing.kubectl.get("pods", "-n", VALIDATION_NAMESPACE))
    assert standing.turn_holder()["run_id"] == run_id
    assert any(PROTECTION in (node["metadata"].get("annotations") or {}) for node in standing.nodes())
    standing.api.call("PATCH", f"/dags/{LIFECYCLE}/dagRuns/{run_id}", json={"state": "failed"})
    run = standing.follow(LIFECYCLE, run_id)
    assert run.state == "failed"
    states = run.states()
    assert (states[probe], states["run_verdict"], states["release_turn"]) == ("failed", "failed", "success")
    assert {states[f"validation.pool_{pool}.clean_up"] for pool in POOLS} == {"success"}
    assert {states["reached_end"], states["teardown_requested"]} == {"skipped"}
    assert left_behind(standing, claims) == []
    assert standing.kubectl.get("pods", "-n", SYSTEM_NAMESPACE) == []
