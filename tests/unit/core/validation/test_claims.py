"""A validation neither buys nor loses nodes; what Karpenter, users and EC2 do meanwhile is no alarm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from gpu_fleet.core.kubernetes.objects import pool_claims
from gpu_fleet.core.validation.chosen import ChosenNodes
from gpu_fleet.core.validation.claims import claims_unchanged, told_before, vanished_nodes
from gpu_fleet.core.validation.report import Check, NodeReport, Outcome, PoolReport, failed, passed
from tests.unit.core import probe_objects as probes
from tests.unit.core.cluster_objects import NOW, POOL, claim, event, user_pod

Objects = list[dict[str, Any]]
OURS = {"gpu-fleet-validation", "gpu-fleet-system"}


def before(*tested: str, untested: str = "", unborn: str = "", capacity: str = "on-demand") -> ChosenNodes:
    """Claim ``a`` has node ``n-a``, and so on."""
    claims = {name: f"n-{name}" for name in (*tested, *untested)}
    return ChosenNodes(
        nodes=[f"n-{name}" for name in tested],
        physical=1,
        replicas=4,
        node_claims=[*claims, *unborn],
        claims=claims,
        instances={f"n-{name}": {"capacityType": capacity} for name in tested},
    )


def check(
    known: ChosenNodes,
    after: str,
    *,
    leaving: str = "",
    pods: Sequence[dict[str, Any]] = (),
    events: Sequence[dict[str, Any]] = (),
    told: str = "",
) -> Check:
    found = [claim(name, node_name=f"n-{name}", deleting=name in leaving) for name in after + leaving]
    return claims_unchanged(known, pool_claims(found, POOL), pods, events, our_namespaces=OURS, known=told)


def nominated(claim_name: str, namespace: str = "team-a", name: str = "training") -> dict[str, Any]:
    found = event("Nominated", f"Pod should schedule on: nodeclaim/{claim_name}, node/n-{claim_name}")
    found["involvedObject"] |= {"namespace": namespace, "name": name}
    return found


def headroom(node_name: str) -> dict[str, Any]:
    found = user_pod(node_name=node_name)
    found["metadata"]["labels"] = {"gpu-fleet.io/component": "headroom"}
    return found


def about(claim_name: str, reason: str, message: str = "") -> dict[str, Any]:
    found = event(reason, message, kind="NodeClaim")
    found["involvedObject"]["name"] = claim_name
    return found


@pytest.mark.parametrize(
    ("after", "pods", "events", "reason"),
    [
        ("a", [], [], "Unchanged"),
        ("ab", [], [], "NodeClaimsBought"),
        ("ab", [probes.unplaced(4)], [], "NodeClaimsBought"),
        ("ab", [user_pod(node_name="n-a")], [], "NodeClaimsBought"),
        ("ab", [user_pod(node_name="elsewhere")], [], "NodeClaimsBought"),
        ("ab", [user_pod(phase="Failed")], [], "NodeClaimsBought"),
        ("ab", [user_pod(phase="Pending")], [], "OthersAskedForMore"),
        ("ab", [user_pod(node_name="n-b")], [], "OthersAskedForMore"),
        ("ab", [user_pod(node_name="n-b", phase="Succeeded")], [], "OthersAskedForMore"),
        # The pod that asked has landed elsewhere, or is gone.
        ("ab", [user_pod(node_name="n-a")], [nominated("b")], "OthersAskedForMore"),
        ("ab", [], [nominated("b")], "OthersAskedForMore"),
        ("abc", [], [nominated("b")], "NodeClaimsBought"),
        ("ab", [], [nominated("a")], "NodeClaimsBought"),
        ("ab", [], [nominated("b", "gpu-fleet-validation")], "NodeClaimsBought"),
        ("ab", [], [nominated("b"), nominated("b", "gpu-fleet-validation")], "NodeClaimsBought"),
        # Headroom is asked for at its own hours, a placeholder by a run.
        ("ab", [], [nominated("b", "gpu-fleet-system", "headroom-a10g-0-x7x2p")], "OthersAskedForMore"),
        ("ab", [], [nominated("b", "gpu-fleet-system", "placeholder-a10g-0")], "NodeClaimsBought"),
        ("ab", [headroom("n-b")], [], "OthersAskedForMore"),
        # A node that is not under test is replaced.
        ("ab", [], [about("b", "DisruptionLaunching", "Launching NodeClaim: Drifted")], "OthersAskedForMore"),
        ("ab", [], [about("a", "DisruptionLaunching", "Launching NodeClaim: Drifted")], "NodeClaimsBought"),
    ],
)
def test_a_new_claim_is_ours_unless_somebody_else_asked_for_it(
    after: str, pods: Objects, events: Objects, reason: str
) -> None:
    found = check(before("a"), after, pods=pods, events=events)
    assert found.reason == reason
    assert found.outcome is (Outcome.FAILED if reason == "NodeClaimsBought" else Outcome.PASSED)
    if reason == "NodeClaimsBought":
        assert "c" in found.message.split() if "c" in after else "NodeClaim(s) b appeared" in found.message


@pytest.mark.parametrize(
    ("was", "after", "events", "reason"),
    [
        (before("a", "b"), "a", [], "NodeClaimsLost"),
        (before("a", "b"), "a", [about("b", "DisruptionTerminating", "Disrupting NodeClaim: Empty")], "NodeClaimsLost"),
        # Karpenter consolidates a node that nobody tests, gives up a claim that never got a node.
        (before("a", untested="b"), "a", [about("b", "DisruptionTerminating", "Empty")], "OthersTookAway"),
        (before("a", unborn="b"), "a", [], "OthersTookAway"),
        # EC2 takes a node away that an earlier wave has passed.
        (before("a", "b"), "a", [about("b", "TerminatingOnInterruption")], "OthersTookAway"),
        (before("a", "b"), "a", [about("a", "TerminatingOnInterruption")], "NodeClaimsLost"),
        (before("a", "b", capacity="spot"), "a", [], "OthersTookAway"),
        (before("a", "b", capacity="spot"), "a", [about("b", "DisruptionTerminating", "Empty")], "NodeClaimsLost"),
    ],
)
def test_a_claim_is_lost_if_its_node_was_protected_and_ec2_has_not_taken_it(
    was: ChosenNodes, after: str, events: Objects, reason: str
) -> None:
    found = check(was, after, events=events)
    assert found.reason == reason
    assert found.outcome is (Outcome.FAILED if reason == "NodeClaimsLost" else Outcome.PASSED)


def test_a_lost_claim_is_named_with_what_karpenter_says_of_it() -> None:
    found = check(before("a"), "", events=[about("a", "DisruptionTerminating", "Disrupting NodeClaim: Empty")])
    assert "a: Disrupting NodeClaim: Empty" in found.message
    assert found.figures == {"before": 1, "after": 0, "added": [], "removed": ["a"]}


def test_a_claim_that_is_being_deleted_is_on_neither_side() -> None:
    """A node that Karpenter was consolidating at the start may still be terminating at the end."""
    found = check(before("a"), "a", leaving="b")
    assert (found.reason, found.figures["after"]) == ("Unchanged", 1)
    assert check(before("a", "b"), "a", leaving="b").reason == "NodeClaimsLost"


def test_a_lost_node_is_not_hidden_by_one_that_a_user_bought() -> None:
    assert check(before("a"), "b", events=[nominated("b")]).reason == "NodeClaimsLost"


# --- what is known already ---
def probe(*nodes: NodeReport, **figures: Any) -> PoolReport:
    claims = Check("nodeClaims", Outcome.PASSED, "OthersAskedForMore", "m", figures)
    return PoolReport("demo", POOL, "sharing", "d/r", 1, 4, NOW, NOW, nodes, (claims,))


def test_a_node_that_an_earlier_probe_missed_explains_its_claim_to_all_later_ones() -> None:
    gone = NodeReport("n-a", {}, (failed("node", "NodeVanished", "gone"),))
    sick = NodeReport("n-b", {}, (failed("hardware", "XidError", "79"),))
    well = NodeReport("n-c", {}, (passed("node", "NodeReady", "there"),))
    assert vanished_nodes([gone, sick, well]) == {"n-a"}
    was = before("a", "b", "c")
    assert told_before(was, [probe(gone, sick, well)], [well]) == told_before(was, [], [gone, well]) == {"a"}
    assert check(was, "bc", told="a").outcome is Outcome.PASSED


def test_what_an_earlier_probe_has_explained_needs_no_event_any_more() -> None:
    was = before("a", "b")
    told = told_before(was, [probe(added=["c"], removed=["b"])], [])
    assert told == {"b", "c"}
    assert check(was, "ac", told="bc").outcome is Outcome.PASSED
    assert check(was, "acd", told="bc").reason == "NodeClaimsBought"
