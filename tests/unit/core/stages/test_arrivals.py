"""A node's moments come from others' time stamps; what has none is unknown."""

from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core.stages.arrivals import arrivals
from gpu_fleet.core.stages.moments import Moment, NodeTimes, Stage
from tests.unit.core.cluster_objects import NOW
from tests.unit.core.stages.stage_objects import CAME, INSTANCE, NODE, at, claim, node, placeholder, pod


def look(
    *pods: dict[str, Any],
    of: dict[str, Any] | None = None,
    claims: list[dict[str, Any]] | None = None,
    launched: bool = True,
) -> NodeTimes:
    launches = {INSTANCE: NOW + CAME[Moment.LAUNCHED]} if launched else {}
    [found] = arrivals([of or node()], [claim()] if claims is None else claims, pods, launches)
    return found


def test_every_moment_of_a_node_that_a_placeholder_asked_for() -> None:
    found = look(placeholder())
    asked = {moment: NOW + CAME[moment] for moment in Moment if moment not in (Moment.PROVEN, Moment.USED)}
    assert found.at == asked
    assert (found.node, found.instance, found.instance_type, found.zone, found.capacity_type) == (
        *(NODE, INSTANCE, "g5.xlarge"),
        *("us-west-2a", "spot"),
    )
    assert (found.key, found.pod, found.asked) == ("uid-claim", "ml/placeholder-0", True)
    assert found.stages() == {
        Stage.REQUEST: 3.0,
        Stage.LAUNCH: 2.0,
        Stage.JOIN: 100.0,
        Stage.READY: 5.0,
        Stage.PLUGIN: 30.0,
        Stage.PROOF: None,
        Stage.USE: None,
    }


def test_the_pod_that_waited_longest_is_the_one_that_the_node_came_for() -> None:
    first = pod("first", at(Moment.PENDING), at(Moment.PLUGIN))
    second = pod("second", at(Moment.PENDING, 2.0), at(Moment.PLUGIN))
    found = look(second, first)
    assert (found.pod, found.asked, found.at[Moment.PENDING]) == ("ml/first", False, NOW)


@pytest.mark.parametrize(
    "other",
    [
        pod("later", at(Moment.CLAIMED, 1.0), at(Moment.PLUGIN)),
        pod("agent", at(Moment.PENDING), at(Moment.PLUGIN), gpus=0),
        pod("elsewhere", at(Moment.PENDING), at(Moment.PLUGIN), node_name="another"),
    ],
    ids=["created after the NodeClaim", "without GPUs", "on another node"],
)
def test_a_pod_that_cannot_have_asked_for_the_node_leaves_the_request_unknown(other: dict[str, Any]) -> None:
    found = look(other)
    assert Moment.PENDING not in found.at
    assert found.seconds(Stage.REQUEST) is None


def test_without_ec2s_word_the_launch_is_the_condition_of_the_claim() -> None:
    assert look(launched=False).at[Moment.LAUNCHED] == NOW + CAME[Moment.LAUNCHED] + 1.0


def test_gpus_are_there_when_the_first_pod_with_gpus_is_bound_also_before_karpenter_says_so() -> None:
    """A startup taint keeps Initialized away, but not a pod that tolerates it."""
    assert look(placeholder(), claims=[claim("Initialized")]).at[Moment.PLUGIN] == NOW + CAME[Moment.PLUGIN]
    assert look().at[Moment.PLUGIN] == NOW + CAME[Moment.PLUGIN] + 1.0
    assert Moment.PLUGIN not in look(claims=[claim("Initialized")]).at


def test_a_node_that_became_ready_again_does_not_say_when_it_first_was() -> None:
    found = look(placeholder(), of=node(Ready=at(Moment.USED)))
    assert Moment.READY not in found.at
    assert (found.seconds(Stage.READY), found.seconds(Stage.PLUGIN)) == (None, None)


def test_the_first_users_pod_is_no_pod_of_ours_and_none_of_a_daemon_set() -> None:
    agent = pod("agent", at(Moment.PLUGIN), at(Moment.PLUGIN))
    agent["metadata"]["ownerReferences"] = [{"kind": "DaemonSet"}]
    probe = pod("probe", at(Moment.PLUGIN, 9.0), at(Moment.PLUGIN, 9.0), component="probe")
    users = [pod(f"job-{late}", at(Moment.USED, late), at(Moment.USED, late)) for late in (5.0, 0.0)]
    assert look(placeholder(), agent, probe, *users).at[Moment.USED] == NOW + CAME[Moment.USED]
    assert Moment.USED not in look(placeholder(), agent, probe).at


def test_a_node_without_a_claim_has_what_the_node_says() -> None:
    found = look(claims=[])
    assert found.at == {Moment.LAUNCHED: NOW + CAME[Moment.LAUNCHED], Moment.READY: NOW + CAME[Moment.READY]}
    assert (found.key, found.created) == ("uid-node", NOW + CAME[Moment.REGISTERED])


def test_conditions_without_a_readable_time_are_unknown() -> None:
    broken = claim()
    for entry in broken["status"]["conditions"]:
        entry["lastTransitionTime"] = None
    found = look(claims=[broken], launched=False)
    assert set(found.at) == {Moment.CLAIMED, Moment.READY}
