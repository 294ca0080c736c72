"""What follows a node that fails its revalidation, by the spec's policy: quarantine and release, or replacement."""

from __future__ import annotations

import json

import pytest

from tests.e2e import revalidation
from tests.e2e.fleet import CLUSTER, SHARED, Fleet, Json, Run, until
from tests.e2e.revalidation import left_behind, names_of, node_of, revalidate

pytestmark = [pytest.mark.e2e, pytest.mark.full, pytest.mark.timeout(420)]

QUARANTINED = "gpu-fleet.io/quarantined"
XID = {"code": 79}


@pytest.fixture
def rounds(fleet: Fleet) -> Fleet:
    """Capacity that stands, and is put right again by who comes next."""
    fleet.stand()
    return fleet


def with_policy(fleet: Fleet, policy: str, budget: int = 1) -> None:
    fleet.write_cluster(CLUSTER, {"validation": {"onFailure": {"policy": policy, "budget": budget}}})


def with_xid(fleet: Fleet, *nodes: str) -> Run:
    """A revalidation of the shared pool while nodes have an XID."""
    with fleet.fault("xid", {"node": list(nodes), **XID}):
        until("the XIDs", lambda: all(revalidation.offers(fleet, node) == 3 for node in nodes))
        return revalidate(fleet, SHARED)


def remediation(run: Run) -> Json:
    found: Json = run.xcom(f"{revalidation.group(SHARED)}.remediate", "remediation")
    return found


def quarantine_of(fleet: Fleet, node: str) -> Json | None:
    """Why a node is quarantined; ``None`` if nothing of a quarantine is on it."""
    found = node_of(fleet, node)
    taints = {taint["key"]: taint for taint in found["spec"].get("taints") or []}
    annotation = (found["metadata"].get("annotations") or {}).get(QUARANTINED)
    cordoned = bool(found["spec"].get("unschedulable"))
    if not cordoned and QUARANTINED not in taints and annotation is None:
        return None
    assert cordoned, found["spec"]
    assert taints[QUARANTINED]["effect"] == "NoSchedule"
    assert annotation is not None
    why: Json = json.loads(annotation)
    assert taints[QUARANTINED]["value"] == why["reason"]
    return why


def test_a_failing_node_is_quarantined_and_released_when_it_passes_again(rounds: Fleet) -> None:
    fleet = rounds
    with_policy(fleet, "quarantine")
    bad, good = names_of(fleet, SHARED)
    claims = set(fleet.node_claims())
    not_ready = fleet.events(f"gpu-fleet://{CLUSTER}/{SHARED}/not-ready")
    run = with_xid(fleet, bad)
    assert remediation(run) == {
        "policy": "quarantine",
        "quarantined": [bad],
        "released": [],
        "replaced": [],
        "left": [],
    }
    why = quarantine_of(fleet, bad)
    assert why is not None
    assert (why["reason"], why["run"]) == ("XidError", f"{run.dag_id}/{run.run_id}")
    assert quarantine_of(fleet, good) is None
    assert left_behind(fleet, claims) == []
    assert fleet.events(f"gpu-fleet://{CLUSTER}/{SHARED}/validated")[-1]["extra"]["reason"] == "ValidatedWithout"
    assert fleet.events(f"gpu-fleet://{CLUSTER}/{SHARED}/not-ready") == not_ready
    assert fleet.turn_holder() == {}

    # A quarantined node that still fails stays so, and is not reported as anything else.
    run = with_xid(fleet, bad)
    assert revalidation.blamed(run, SHARED) == {bad: {"XidError"}}
    assert quarantine_of(fleet, bad) is not None

    until("healthy nodes again", lambda: revalidation.healthy(fleet))
    run = revalidate(fleet, SHARED).succeeded()
    assert remediation(run)["released"] == [bad]
    assert quarantine_of(fleet, bad) is None
    assert revalidation.blamed(run, SHARED) == {}
    assert left_behind(fleet, claims) == []


def test_no_more_nodes_are_taken_than_the_budget_allows(rounds: Fleet) -> None:
    fleet = rounds
    with_policy(fleet, "quarantine", budget=1)
    one, other = names_of(fleet, SHARED)
    with fleet.fault("split-sharers", {"node": other}):
        run = with_xid(fleet, one)
    assert run.state == "failed"
    done = remediation(run)
    taken, left = done["quarantined"], [entry["node"] for entry in done["left"]]
    assert sorted([*taken, *left]) == [one, other]
    assert len(taken) == len(left) == 1
    assert quarantine_of(fleet, taken[0]) is not None
    assert quarantine_of(fleet, left[0]) is None
    until("healthy nodes again", lambda: revalidation.healthy(fleet))
    assert remediation(revalidate(fleet, SHARED).succeeded())["released"] == taken


def test_a_defect_of_the_whole_pool_takes_no_node(rounds: Fleet) -> None:
    fleet = rounds
    with_policy(fleet, "quarantine", budget=2)
    nodes = names_of(fleet, SHARED)
    run = with_xid(fleet, *nodes)
    assert run.state == "failed"
    assert remediation(run)["quarantined"] == []
    assert [quarantine_of(fleet, node) for node in nodes] == [None, None]


def test_a_failing_node_is_replaced(rounds: Fleet) -> None:
    """Its NodeClaim goes, the other node stays, and the next lifecycle run brings another one."""
    fleet = rounds
    with_policy(fleet, "replace")
    bad, good = names_of(fleet, SHARED)
    before = {node: node_of(fleet, node)["spec"]["providerID"] for node in (bad, good)}
    run = with_xid(fleet, bad)
    assert remediation(run)["replaced"] == [bad]
    until("the end of the failed node", lambda: names_of(fleet, SHARED) == [good], 90)
    assert left_behind(fleet) == []
    fleet.write_cluster()
    fleet.lifecycle().succeeded()
    # By instance: a new node may get the address, and so the name, of one that has gone.
    after = {node_of(fleet, node)["spec"]["providerID"] for node in names_of(fleet, SHARED)}
    assert len(after) == 2
    assert before[good] in after
    assert before[bad] not in after
