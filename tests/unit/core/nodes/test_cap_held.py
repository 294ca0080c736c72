"""Drifted nodes that hold the cap: which stay, what is said, and that each remedy makes room."""

from __future__ import annotations

import re
from typing import Any

import pytest

from gpu_fleet.core.manifests.build import build
from gpu_fleet.core.nodes.cap_held import OldNode, cap_is_held, goes_when_empty, old_nodes, stays
from tests.unit.core.cluster_objects import POOL, claim, placeholder, user_pod
from tests.unit.core.specs import demo_spec

N1, N2, N3, N4 = (f"ip-10-0-0-{i}.us-west-2.compute.internal" for i in (1, 2, 3, 4))
WHY = ("sharing time-slicing-4 -> time-slicing-8",)
#: Without a budget for drift the package adds one that forbids it.
ROLLS = {"nodes": "1", "reasons": ["Drifted"]}
NO_DRIFT = [{"nodes": "0", "reasons": ["Drifted"]}, {"nodes": "10%"}]


@pytest.mark.parametrize(
    ("budgets", "after", "empty", "expected"),
    [
        pytest.param([{"nodes": "10%"}, ROLLS], "5m", False, False, id="Karpenter rolls it"),
        pytest.param(NO_DRIFT, "5m", False, True, id="busy"),
        pytest.param(NO_DRIFT, "5m", True, False, id="empty, consolidated soon"),
        pytest.param(NO_DRIFT, "24h", True, True, id="empty, consolidated late"),
        pytest.param(NO_DRIFT, "Never", True, True, id="empty, never"),
        pytest.param([{"nodes": "0"}], "5m", False, True, id="no disruption"),
        pytest.param([{"nodes": "0"}], "5m", True, True, id="no disruption, empty"),
        pytest.param([*NO_DRIFT, {"nodes": "0%", "reasons": ["Empty"]}], "5m", True, True, id="emptiness barred, too"),
        pytest.param([{"nodes": "0", "reasons": ["Empty"]}, ROLLS], "5m", False, False, id="only emptiness is barred"),
        pytest.param(
            [{"nodes": "0", "schedule": "0 9 * * *", "duration": "8h"}, ROLLS],
            "5m",
            False,
            False,
            id="barred for some hours only",
        ),
    ],
)
def test_whether_a_drifted_node_goes_by_itself(budgets: Any, after: str, empty: bool, expected: bool) -> None:
    changes = {"nodePools__0__disruption": {"budgets": budgets, "consolidateAfter": after}}
    spec = demo_spec(**changes)
    (manifest,) = build("node_pool", spec, pool=POOL)
    assert stays(spec.pool(POOL), manifest, within_s=1200.0, empty=empty) is expected
    if empty:
        assert goes_when_empty(spec.pool(POOL), manifest, within_s=1200.0) is not expected


def test_what_is_known_of_a_drifted_node_is_who_is_on_it_and_which_claim_is_its_own() -> None:
    protected = user_pod("logs", node_name=N3, gpus=0)
    protected["metadata"]["annotations"] = {"karpenter.sh/do-not-disrupt": "true"}
    agent = user_pod("agent", node_name=N4, gpus=0)
    agent["metadata"]["ownerReferences"] = [{"kind": "DaemonSet", "name": "agent"}]
    pods = [
        user_pod("train", node_name=N1),
        user_pod("web", node_name=N2, gpus=0),
        protected,
        agent,
        user_pod("done", node_name=N4, phase="Succeeded"),
        user_pod("pending"),
        placeholder(0, node_name=N4),
    ]
    claims = [claim(f"c{i}", node_name=name) for i, name in enumerate((N1, N2, N3), 1)]
    found = old_nodes(dict.fromkeys((N1, N2, N3, N4), WHY), claims, pods)
    assert [(node.claim, node.pods, node.idle, node.empty) for node in found] == [
        ("c1", ("team-a/train",), False, False),
        ("c2", (), True, False),  # may be replaced, and does not go by itself
        ("c3", (), False, False),
        ("", (), True, True),  # its claim is not known
    ]
    assert str(found[0]) == f"node {N1} drifted: {WHY[0]}, holds 1 GPU pod (team-a/train)"


def idle(name: str) -> OldNode:
    return OldNode(name, WHY, f"claim-{name}")


def busy(name: str, *pods: str) -> OldNode:
    return OldNode(name, WHY, f"claim-{name}", pods or ("team-a/train",), idle=False, empty=False)


def told(staying: list[OldNode], needed: int = 2, cap: int = 3, go_when_empty: bool = False) -> str:
    pool = demo_spec(nodePools__0__limits={"nodes": cap}).pool(POOL)
    return cap_is_held(pool, needed=needed, staying=staying, go_when_empty=go_when_empty)


def test_where_there_is_room_nothing_is_held() -> None:
    assert told([busy("a"), busy("b")], needed=1) == ""
    assert told([busy("a")], needed=2) == ""
    assert told([], needed=9) == ""


def test_nodes_that_leave_no_room_are_named_with_their_pods() -> None:
    words = told([busy("a"), busy("b", "team-a/x", "team-b/y")])
    assert f"node b drifted: {WHY[0]}, holds 2 GPU pods (team-a/x, team-b/y)" in words
    assert words.startswith(
        "pool shared-a10g may have 3 node(s) at once, and 2 that drifted hold places that 2 node(s)"
    )


RAISE, CLAIMS, JOBS = r"limits\.nodes of pool shared-a10g to (\d+)", r"delete nodeclaim (.*)$", r"jobs on (\d+) of"


@pytest.mark.parametrize(
    ("staying", "needed", "cap", "claims", "jobs"),
    [
        pytest.param([idle("a"), idle("b")], 2, 2, "claim-a claim-b", 0, id="all idle"),
        pytest.param([idle("a"), idle("b")], 2, 3, "claim-a", 0, id="one too many"),
        pytest.param([busy("a"), idle("b")], 2, 3, "claim-b", 0, id="one too many, and one of two idle"),
        pytest.param([busy("a"), idle("b")], 2, 2, "", 1, id="one idle, two places needed"),
        pytest.param([busy("a"), busy("b")], 2, 2, "", 2, id="all busy"),
        pytest.param([busy("a"), OldNode("b", WHY)], 2, 3, "", 1, id="the idle one's claim is not known"),
        pytest.param([busy("a")], 4, 2, "", 0, id="too many places are held by others"),
    ],
)
def test_each_remedy_that_is_named_makes_room(
    staying: list[OldNode], needed: int, cap: int, claims: str, jobs: int
) -> None:
    words = told(staying, needed, cap)
    (limit,) = re.findall(RAISE, words)
    assert told(staying, needed, int(limit)) == ""
    assert told(staying, needed, int(limit) - 1) != ""
    named = " ".join(re.findall(CLAIMS, words))
    assert (named, [int(count) for count in re.findall(JOBS, words)]) == (claims, [jobs] if jobs else [])
    if named:
        assert told([node for node in staying if node.claim not in named.split()], needed, cap) == ""
    if jobs and all(node.claim for node in staying):
        ended = [idle(node.name) for node in staying]
        then = " ".join(re.findall(CLAIMS, told(ended, needed, cap))).split()
        assert told([node for node in ended if node.claim not in then], needed, cap) == ""


def test_what_happens_when_the_jobs_have_ended_depends_on_whether_empty_nodes_go() -> None:
    assert "their nodes go by themselves then" in told([busy("a"), busy("b")], cap=2, go_when_empty=True)
    assert "the next run names the NodeClaims that can be deleted then" in told([busy("a"), busy("b")], cap=2)
    # An idle one that stays has pods without a GPU, so it does not go with the end of the jobs on the other.
    assert "the next run names" in told([busy("a"), idle("b")], cap=2, go_when_empty=True)
