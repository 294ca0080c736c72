"""One life of the capacity beside other teams: nothing of theirs is written to, none of their pods ends, and what is
done to ours was announced before.

First a lifecycle, then a change of the shared pool from 4 to 8 replicas while a user's job runs on it, then a teardown
that a person approves; all the time with another team's GPU node group, device plugin, NodePool, budgets that allow
nothing and bare pods, and a webhook that rewrites every pod.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import pytest

from demo import workload
from tests.e2e import neighbour_objects as theirs
from tests.e2e.announced import SHARING, TEMPLATE
from tests.e2e.fleet import (
    CLUSTER,
    LIFECYCLE,
    POOL_LABEL,
    SHARED,
    TEARDOWN,
    Fleet,
    Json,
    Run,
    cluster_spec,
    pool_changes,
)
from tests.e2e.neighbour import Neighbour, Seen

pytestmark = [pytest.mark.e2e, pytest.mark.full, pytest.mark.timeout(900)]

WANTED, CAP = 1, 2


def spec(replicas: int) -> Json:
    """One node wanted in the shared pool, two at most. Karpenter stays, as another team's NodePool does."""
    changes = {"wantedNodes": WANTED, "limits": {"nodes": CAP}, "sharing": {"replicas": replicas}}
    return pool_changes(cluster_spec(changes={"teardown": {"uninstallKarpenter": False}}), SHARED, changes)


@dataclass
class Story:
    """What happened, for the tests below.

    :ivar most: the largest number of our instances that was ever seen at once.
    :ivar standing: run -> the nodes of our pools before it, and the users' pods that held GPUs there.
    """

    fleet: Fleet
    neighbour: Neighbour
    before: dict[str, Seen] = field(default_factory=dict)
    after: dict[str, Seen] = field(default_factory=dict)
    most: int = 0
    standing: dict[str, dict[str, dict[str, set[str]]]] = field(default_factory=dict)
    runs: dict[str, Run] = field(default_factory=dict)
    job: list[str] = field(default_factory=list)
    job_after_change: list[str] = field(default_factory=list)

    def look(self, tasks: dict[str, Json]) -> None:
        self.neighbour.look(tasks)
        mine = [i for i in self.fleet.instances().values() if _pool_of(i) in self.neighbour.pools]
        self.most = max(self.most, len(mine))

    def play(self) -> None:
        fleet, neighbour = self.fleet, self.neighbour
        neighbour.install()
        self.before = neighbour.snapshot()
        with neighbour.webhook():
            fleet.write_spec(spec(4))
            self.standing["first"] = neighbour.standing()
            self.runs["first"] = fleet.run(LIFECYCLE, {"until": "validated", "pools": [SHARED]}, on_tick=self.look)
            neighbour.install_node_pool()
            fleet.users_job(SHARED)
            self.job = self._job()
            self.standing["change"] = neighbour.standing()
            self.before |= neighbour.snapshot()
            fleet.write_spec(spec(8))
            self.runs["change"] = fleet.run(LIFECYCLE, {"until": "validated", "pools": [SHARED]}, on_tick=self.look)
            self.job_after_change = self._job()
            self.runs["teardown"] = fleet.run(TEARDOWN, on_tick=self.look)
        self.after = neighbour.snapshot()
        neighbour.read()

    def _job(self) -> list[str]:
        pods = self.fleet.kubectl.get("pods", "-n", workload.NAMESPACE)
        return sorted(pod["metadata"]["uid"] for pod in pods if pod["status"].get("phase") == "Running")

    def announced(self) -> list[str]:
        """The pods that the approved plan named."""
        plan = self.runs["teardown"].xcom("teardown.plan_again")
        return [] if plan is None else [str(pod) for pod in plan["plan"]["pods"]]


def _pool_of(instance: Json) -> str:
    return next((tag["Value"] for tag in instance.get("Tags", []) if tag["Key"] == POOL_LABEL), "")


@pytest.fixture(scope="module")
def story(the_fleet: Fleet) -> Iterator[Story]:
    the_fleet.reset()
    the_fleet.runs.clear()
    found = Story(the_fleet, Neighbour(the_fleet))
    try:
        found.play()
        yield found
    finally:
        the_fleet.repair()
        found.neighbour.leave()
        with suppress(RuntimeError):
            the_fleet.end_users_job()
        the_fleet.write_cluster(CLUSTER)


def test_all_three_runs_succeed(story: Story, fleet: Fleet) -> None:
    fleet.runs.extend((run.dag_id, run.run_id) for run in story.runs.values())
    assert {name: (run.state, run.failed) for name, run in story.runs.items()} == {
        name: ("success", []) for name in ("first", "change", "teardown")
    }


def test_no_write_reached_an_object_of_others(story: Story) -> None:
    assert story.neighbour.foreign_writes() == []
    # The oracle saw something: an audit log without our writes would find nothing foreign either.
    assert len(story.neighbour.writes_by_us()) > 50


def test_no_object_of_others_was_changed_by_us(story: Story) -> None:
    assert len(story.before) > 40
    """But for the evictions that a person has approved, pod by pod."""
    assert story.neighbour.changed_by_us(story.before, story.after, announced=story.announced()) == []


def test_every_change_of_an_object_of_others_is_in_the_audit_log(story: Story) -> None:
    assert story.neighbour.unexplained(story.before, story.after) == []


def test_nothing_was_changed_in_aws_but_by_karpenter(story: Story) -> None:
    assert story.neighbour.aws_writes() == []


def test_no_pod_of_a_user_ended_that_the_approved_plan_did_not_name(story: Story) -> None:
    assert story.neighbour.killed_pods(announced=story.announced()) == []


def test_change_of_sharing_left_the_running_job_alone(story: Story) -> None:
    assert story.job
    assert set(story.job) <= set(story.job_after_change)


def test_never_more_instances_than_the_cap(story: Story) -> None:
    assert WANTED <= story.most <= CAP


def test_others_pods_run_as_before(story: Story) -> None:
    for space in theirs.NAMESPACES:
        for pod in story.fleet.kubectl.get("pods", "-n", space):
            assert pod["status"].get("phase") == "Running", pod["metadata"]["name"]
    assert story.neighbour.gpus_of_theirs() == [1]
    assert story.fleet.kubectl.get("nodepool", theirs.NODE_POOL)


def test_every_change_of_nodes_and_sharing_was_announced_before_it_was_written(story: Story) -> None:
    for name in ("first", "change"):
        problems, found = story.neighbour.unannounced(story.runs[name], story.standing[name])
        assert problems == []
        written = {(each.entry.resource, each.what) for each in found if each.pool == SHARED}
        # What the run did is what was compared: NodePool, NodeOverlay, and the release with its ConfigMap.
        assert {("nodepools", TEMPLATE), ("nodeoverlays", SHARING)} <= written
        assert {("secrets", SHARING), ("configmaps", SHARING)} <= written
    nodes = story.standing["change"][SHARED]
    assert [len(pods) for pods in nodes.values()] == [len(story.job)], "the change met no node that was in use"


def test_every_freeze_eviction_and_removal_was_planned_and_came_after_the_approval(story: Story) -> None:
    problems, writes = story.neighbour.unapproved(story.runs["teardown"])
    assert problems == []
    done = {(entry.resource, entry.verb) for entry in writes}
    assert {("nodepools", "patch"), ("nodes", "patch"), ("pods", "create"), ("nodepools", "delete")} <= done


def test_users_pods_that_went_were_named_in_the_plan_that_was_approved(story: Story) -> None:
    ended = set(story.neighbour.ended_pods())
    mine = {name for name in ended if name.startswith(f"{workload.NAMESPACE}/")}
    assert mine
    assert mine <= set(story.announced())
