"""The deadline engine on the sandbox's API server."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from gpu_fleet.core.drain.actions import Limits
from gpu_fleet.core.drain.drained import Target
from gpu_fleet.core.drain.records import Outcome, PodRecord
from gpu_fleet.core.drain.rules import DrainRules
from gpu_fleet.core.kubernetes.kinds import POD, ObjectRef
from gpu_fleet.core.spec.operations import Drain
from gpu_fleet.hooks.kubernetes.hook import KubeClient
from gpu_fleet.operators.draining import drain, ledger
from tests.unit.operators.draining_world import World, by_name, outcomes
from tests.unit.sandboxed import SandboxCluster, sandbox_cluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxCluster]:
    with sandbox_cluster(tmp_path_factory.mktemp("draining")) as running:
        yield running


@pytest.fixture
def world(cluster: SandboxCluster) -> Iterator[World]:
    world = World(cluster)
    world.node("n1")
    yield world
    world.clear()


class Requests:
    """Counts what is asked of the API, and what was stored before.

    :ivar asked: ``(verb, pod, moment)`` in the order in which they began.
    :ivar most: requests under way at a time.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[tuple[str, str, float]] = []
        self.stored: dict[str, dict[str, Any]] = {}
        self.writes: list[float] = []
        self.unannounced: list[str] = []
        self.most = self.now = 0
        self.hold: threading.Barrier | None = None
        self._lock = threading.Lock()
        evict, delete = KubeClient.evict, KubeClient.delete

        def evicting(kube: KubeClient, namespace: str, name: str, **options: Any) -> None:
            with self.counted("evict", name, options["uid"]):
                evict(kube, namespace, name, **options)

        def deleting(kube: KubeClient, ref: ObjectRef, **options: Any) -> bool:
            if options.get("read_timeout") is None:  # of the test itself
                return delete(kube, ref, **options)
            with self.counted("delete", ref.name, options["uid"]):
                return delete(kube, ref, **options)

        monkeypatch.setattr(KubeClient, "evict", evicting)
        monkeypatch.setattr(KubeClient, "delete", deleting)

    def counted(self, verb: str, name: str, uid: str) -> Any:
        requests = self

        class Counted:
            def __enter__(self) -> None:
                with requests._lock:
                    requests.asked.append((verb, name, time.time()))
                    requests.now += 1
                    requests.most = max(requests.most, requests.now)
                    if uid not in requests.stored:
                        requests.unannounced.append(name)
                if requests.hold is not None:
                    requests.hold.wait(10)

            def __exit__(self, *_: object) -> None:
                with requests._lock:
                    requests.now -= 1

        return Counted()

    def store(self, rows: Mapping[str, dict[str, Any]]) -> None:
        self.stored = dict(rows)
        self.writes.append(time.time())

    def of(self, verb: str) -> list[str]:
        return [name for what, name, _ in self.asked if what == verb]


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> Requests:
    return Requests(monkeypatch)


def test_pods_of_several_nodes_are_evicted_and_confirmed(world: World, requests: Requests) -> None:
    world.node("n2")
    world.node("other")
    uids = {world.pod(f"p{index}", f"n{index % 2 + 1}") for index in range(6)}
    world.pod("elsewhere", "other")
    with world.kubelets():
        drained = world.drain("n1", "n2", on_progress=requests.store)
    assert set(outcomes(drained).values()) == {"Evicted"}
    assert {record.uid for record in drained.records} == uids
    assert all(record.gone_at and record.asked_at and record.gone_at >= record.asked_at for record in drained.records)
    assert world.get("elsewhere") is not None
    assert requests.unannounced == [], "each pod's record is stored before the pod is asked to go"
    assert len(requests.writes) < 6, "few writes, not one per pod"
    assert {row["outcome"] for row in requests.stored.values()} == {"Evicted"}


def test_requests_are_under_way_at_the_same_time_within_and_across_nodes(world: World, requests: Requests) -> None:
    """Eight are held until all eight are there: one after another would never end."""
    world.node("n2")
    for index in range(8):
        world.pod(f"p{index}", f"n{index % 2 + 1}")
    requests.hold = threading.Barrier(8)
    with world.kubelets():
        drained = world.drain("n1", "n2", workers=8)
    assert set(outcomes(drained).values()) == {"Evicted"}
    assert requests.most == 8


def test_requests_are_bounded(world: World, requests: Requests) -> None:
    for index in range(12):
        world.pod(f"p{index}")
    with world.kubelets():
        world.drain(workers=3)
    assert 1 < requests.most <= 3


def test_a_pod_that_its_budget_protects_is_deleted_when_its_grace_has_to_begin(
    world: World, requests: Requests
) -> None:
    world.pod("a", grace=2)
    world.budget(allowed=0)
    began = time.time()
    with world.kubelets():
        drained = world.drain(seconds=6.0, margin=1.0)
    record = by_name(drained)["a"]
    assert record.outcome is Outcome.FORCED
    assert "its grace of 2 s had to begin" in record.reason
    assert "web-pdb" in record.reason
    assert record.refused >= 2
    ((_, _, moment),) = [each for each in requests.asked if each[0] == "delete"]
    assert 2.9 <= moment - began <= 4.5, "at deadline - margin - grace"
    assert len(requests.of("evict")) <= 4, "with pauses in between"


def test_a_grace_that_does_not_fit_begins_at_once(world: World, requests: Requests) -> None:
    world.pod("a", grace=600)
    world.budget(allowed=0)
    began = time.time()
    with world.kubelets():
        drained = world.drain(seconds=10.0, margin=1.0)
    record = by_name(drained)["a"]
    assert record.outcome is Outcome.FORCED
    assert "its grace of 600 s does not fit in the 9 s that are left" in record.reason
    assert [verb for verb, _, _ in requests.asked] == ["evict", "delete"]
    assert requests.asked[1][2] - began < 3.0


def test_its_own_grace_is_kept_when_a_pod_is_forced(world: World) -> None:
    world.pod("a", grace=600)
    world.budget(allowed=0)
    drained = world.drain(seconds=3.0, margin=1.0)
    assert (world.get("a") or {})["metadata"]["deletionGracePeriodSeconds"] == 600
    record = by_name(drained)["a"]
    assert record.outcome is Outcome.LOST
    assert "does not fit" in record.reason
    assert "still terminating when the time was up" in record.reason


def test_a_budget_that_begins_to_allow_is_used_before_force(world: World, requests: Requests) -> None:
    world.pod("a")
    world.budget(allowed=0)
    timer = threading.Timer(1.5, lambda: world.allow(1))
    timer.start()
    with world.kubelets():
        drained = world.drain(seconds=20.0)
    timer.join()
    assert outcomes(drained) == {"a": "Evicted"}
    assert requests.of("delete") == []


def test_two_budgets_on_a_pod_force_it(world: World) -> None:
    world.pod("a")
    for name in ("web-pdb", "second"):
        world.budget(allowed=1, name=name)
    with world.kubelets():
        drained = world.drain(seconds=4.0)
    record = by_name(drained)["a"]
    assert record.outcome is Outcome.FORCED
    assert "more than one PodDisruptionBudget" in record.words


def test_retry_after_is_obeyed_for_the_pod_and_delays_no_other(world: World, requests: Requests) -> None:
    """A budget that its controller has not seen yet: Retry-After 10."""
    world.pod("a")
    world.pod("b", labels={"app": "other"})
    world.budget(allowed=1, observed=0)
    with world.kubelets():
        drained = world.drain(seconds=6.0)
    assert outcomes(drained) == {"a": "Forced", "b": "Evicted"}
    assert requests.of("evict").count("a") == 1, "not again within ten seconds"
    assert by_name(drained)["b"].gone_at < by_name(drained)["a"].asked_at + 2.0  # type: ignore[operator]


def test_a_server_with_too_much_to_do_slows_all_requests_down(world: World, requests: Requests) -> None:
    for index in range(6):
        world.pod(f"p{index}")
    world.cluster.fail_requests(resource="pods", subresource="eviction", status=429, retryAfter=2, count=1)
    with world.kubelets():
        drained = world.drain(workers=1)
    assert set(outcomes(drained).values()) == {"Evicted"}
    moments = [moment for _, _, moment in requests.asked]
    assert moments[1] - moments[0] >= 1.9, "the next pod's request waits as well"
    assert sum(record.refused for record in drained.records) == 1


@pytest.mark.parametrize(
    "fault",
    [{"status": 500, "message": "etcdserver: request timed out"}, {"status": 503}, {"cut": True}],
    ids=["500", "503", "cut"],
)
def test_an_api_server_that_is_away_for_a_while_costs_no_pod(world: World, fault: dict[str, Any]) -> None:
    for index in range(3):
        world.pod(f"p{index}")
    world.cluster.fail_requests(userAgent="gpu-fleet", **fault)
    timer = threading.Timer(3.0, world.cluster.faults.clear)
    timer.start()
    with world.kubelets():
        drained = world.drain(seconds=15.0)
    timer.join()
    assert set(outcomes(drained).values()) == {"Evicted"}
    assert drained.unseen == {}
    assert drained.seconds >= 2.9


def test_nodes_that_were_never_seen_are_named(world: World) -> None:
    world.pod("a")
    world.cluster.fail_requests(userAgent="gpu-fleet", status=503, message="apiserver is shutting down")
    drained = world.drain(seconds=2.0)
    world.cluster.faults.clear()
    assert "apiserver is shutting down" in drained.unseen["n1"]
    assert drained.records == []


def test_the_rules_say_how_pods_are_treated_and_refuse_none(world: World) -> None:
    rules = DrainRules(
        ignore_daemon_sets=False, delete_empty_dir_data=False, daemon_sets=frozenset({("default", "web")})
    )
    world.pod("bare", owner=None)
    world.pod("scratch", volumes=[{"name": "x", "emptyDir": {}}])
    world.pod("agent", owner="DaemonSet")
    world.pod("static", owner=None, annotations={"kubernetes.io/config.mirror": "x"})
    with world.kubelets():
        found = by_name(world.drain(rules=rules))
    assert {name: (record.outcome.value, record.rule) for name, record in found.items()} == {
        "bare": ("Evicted", "Unreplicated"),
        "scratch": ("Evicted", "LocalStorage"),
        "agent": ("Left", "DaemonSetManaged"),
        "static": ("Left", "MirrorPod"),
    }
    assert "loses the data" in found["scratch"].note
    assert "nothing recreates it" in found["bare"].note


def test_what_karpenter_evicts_at_the_same_time_is_not_ours(world: World, requests: Requests) -> None:
    world.pod("a")
    world.kube.evict("default", "a", uid=str((world.get("a") or {})["metadata"]["uid"]))
    requests.asked.clear()
    with world.kubelets(takes=0.5):
        drained = world.drain(on_progress=requests.store)
    assert outcomes(drained) == {"a": "Terminated"}
    assert requests.asked == []
    assert by_name(drained)["a"].reason == "was not terminated by this drain"


def test_a_pod_that_others_evict_after_it_was_refused_is_not_ours(world: World, requests: Requests) -> None:
    world.pod("a")
    world.budget(allowed=0)
    timer = threading.Timer(1.0, lambda: world.kube.delete(ObjectRef(POD, "a", "default")))
    timer.start()
    with world.kubelets():
        drained = world.drain(on_progress=requests.store)
    timer.join()
    assert outcomes(drained) == {"a": "Terminated"}
    assert by_name(drained)["a"].refused >= 1


def test_a_finalizer_that_never_ends_keeps_the_object_and_not_the_drain(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpu_fleet.core.drain.actions.STUCK_AFTER_S", 1.0)
    world.pod("a", finalizers=["example.com/never"])
    world.pod("b")
    began = time.time()
    with world.kubelets():
        drained = world.drain(seconds=60.0)
    assert outcomes(drained) == {"a": "StuckTerminating", "b": "Evicted"}
    assert by_name(drained)["a"].granted == "Evicted"
    assert time.time() - began < 15


def test_a_pod_that_does_not_end_in_time_is_lost(world: World) -> None:
    world.pod("a", grace=1)
    drained = world.drain(seconds=2.0)
    record = by_name(drained)["a"]
    assert record.outcome is Outcome.LOST
    assert record.gone_at is None
    assert record.granted == "Evicted"


def test_a_pod_that_appears_later_is_evicted_as_well(world: World) -> None:
    """It tolerates the cordon, or names its node itself."""
    world.pod("a", grace=30)
    timer = threading.Timer(0.7, lambda: world.pod("late"))
    timer.start()
    with world.kubelets(takes=1.5):
        drained = world.drain()
    timer.join()
    assert outcomes(drained) == {"a": "Evicted", "late": "Evicted"}


def test_pods_of_a_node_that_is_gone_are_lost_and_nothing_waits_for_them(world: World) -> None:
    world.pod("a", "gone")
    world.pod("b", "n1")
    with world.kubelets(ends=lambda pod: pod["spec"]["nodeName"] != "gone"):
        drained = world.drain("gone", "n1", seconds=60.0)
    assert outcomes(drained) == {"a": "Lost", "b": "Evicted"}
    assert by_name(drained)["a"].reason == "its node no longer exists"
    assert drained.seconds < 50


def test_a_pod_that_vanishes_before_it_is_asked_is_gone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.pod("a")
    evict = KubeClient.evict

    def too_late(kube: KubeClient, namespace: str, name: str, **options: Any) -> None:
        world.end(name)
        evict(kube, namespace, name, **options)

    monkeypatch.setattr(KubeClient, "evict", too_late)
    drained = world.drain()
    assert outcomes(drained) == {"a": "Gone"}


class Killed(BaseException):
    """The worker is told to stop."""


def test_a_killed_task_continues_from_its_records_and_asks_nobody_twice(world: World, requests: Requests) -> None:
    for name in ("a", "b"):
        world.pod(name)
    world.budget(allowed=1)

    def killed(record: PodRecord) -> None:
        if record.outcome is Outcome.EVICTED:
            raise Killed

    with pytest.raises(Killed):
        world.drain(on_progress=requests.store, on_change=killed, workers=1)
    assert sorted(row["outcome"] for row in requests.stored.values()) != ["Waiting", "Waiting"]
    before = list(requests.asked)
    (gone,) = [name for name in ("a", "b") if (world.get(name) or {})["metadata"].get("deletionTimestamp")]
    world.end(gone)
    world.allow(1)
    with world.kubelets():
        drained = world.drain(records=requests.stored, on_progress=requests.store)
    assert outcomes(drained) == {"a": "Evicted", "b": "Evicted"}
    assert gone not in [name for _, name, _ in requests.asked[len(before) :]]


def test_a_try_that_was_killed_without_a_word_counts_what_it_was_about_to_do(world: World) -> None:
    """Its last record is 'Asked'; the pod terminates: nobody else is known to have asked for it."""
    uid = world.pod("a")
    row = PodRecord("default", "a", uid, "n1", "Evictable", outcome=Outcome.ASKED).to_json()
    gone = PodRecord("default", "b", "u-b", "n1", "Evictable", outcome=Outcome.ASKED).to_json()
    world.kube.evict("default", "a", uid=uid)
    with world.kubelets(takes=0.5):
        drained = world.drain(records={uid: row, "u-b": gone})
    assert outcomes(drained) == {"a": "Evicted", "b": "Evicted"}


@pytest.mark.parametrize("skew", [-5.0, 5.0], ids=["the worker is behind", "the worker is ahead"])
def test_the_deadline_is_by_the_clusters_clock(
    world: World, requests: Requests, monkeypatch: pytest.MonkeyPatch, skew: float
) -> None:
    world.pod("a")
    world.budget(allowed=0)
    monkeypatch.setattr(KubeClient, "ahead", property(lambda self: -skew))
    began = time.time()
    with world.kubelets():
        drained = world.drain(limits=Limits(deadline=began + 5.0, margin=1.0), clock=lambda: time.time() + skew)
    assert outcomes(drained) == {"a": "Forced"}
    ((_, _, moment),) = [each for each in requests.asked if each[0] == "delete"]
    assert 2.9 <= moment - began <= 4.5


def test_a_store_that_hangs_holds_nothing_up_for_long(
    world: World, requests: Requests, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "PATIENCE_S", 0.5)
    world.pod("a")
    released = threading.Event()
    began = time.time()
    threading.Timer(3.0, released.set).start()
    with world.kubelets():
        drained = world.drain(on_progress=lambda rows: released.wait(10) and None)
    assert outcomes(drained) == {"a": "Evicted"}
    assert requests.asked[0][2] - began < 2.0


def test_a_store_that_fails_ends_nothing(world: World) -> None:
    world.pod("a")

    def fails(rows: Mapping[str, Any]) -> None:
        raise RuntimeError("Airflow's API server restarts")

    with world.kubelets():
        assert outcomes(world.drain(on_progress=fails)) == {"a": "Evicted"}


def test_without_a_deadline_the_rules_refuse_and_budgets_are_waited_for(world: World, requests: Requests) -> None:
    world.pod("bare", owner=None)
    world.pod("a")
    world.budget(allowed=0)
    now = world.kube.now()
    with world.kubelets():
        drained = world.drain(limits=Limits(evict_until=now + 3.0, end=now + 10.0))
    found = by_name(drained)
    assert outcomes(drained) == {"a": "Left", "bare": "Left"}
    assert found["bare"].rule == "Unreplicated"
    assert "web-pdb" in found["a"].reason
    assert requests.of("delete") == []
    assert "bare" not in requests.of("evict")


def test_without_a_deadline_the_policy_may_delete(world: World) -> None:
    world.pod("a")
    world.budget(allowed=0)
    now = world.kube.now()
    with world.kubelets():
        drained = world.drain(limits=Limits(evict_until=now + 2.0, then_delete=True, end=now + 20.0))
    record = by_name(drained)["a"]
    assert record.outcome is Outcome.FORCED
    assert record.reason.startswith("drain.timeout has passed")


def test_the_specs_grace_and_disabled_eviction_are_kept(world: World, requests: Requests) -> None:
    world.pod("a", grace=600)
    world.budget(allowed=0)
    with world.kubelets(takes=0.3):
        drained = world.drain(policy={"gracePeriod": 7, "disableEviction": True})
    record = by_name(drained)["a"]
    assert (record.outcome, record.grace) == (Outcome.DELETED, 7.0)
    assert requests.of("evict") == []


def test_nodes_that_end_first_are_served_first_and_long_graces_before_short_ones(
    world: World, requests: Requests, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drain, "GATHER_S", 10.0)
    world.node("n2")
    world.pod("late-long", "n1", grace=9)
    world.pod("soon-short", "n2", grace=1)
    world.pod("soon-long", "n2", grace=5)
    now = world.kube.now()
    targets = [Target("n1", Limits(deadline=now + 40)), Target("n2", Limits(deadline=now + 20))]
    with world.kubelets():
        drain.drain_nodes(
            world.kube, targets, rules=DrainRules(), policy=Drain(), workers=1, on_progress=requests.store
        )
    assert requests.of("evict") == ["soon-long", "soon-short", "late-long"]
