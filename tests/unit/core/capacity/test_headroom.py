"""Headroom: which windows are open, which Jobs follow from them, and what they cost."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from gpu_fleet.core.aws.costs import PriceList
from gpu_fleet.core.capacity.headroom import (
    LEAST_LEFT_S,
    UNTIL,
    closes_at,
    deadline_s,
    headroom_costs,
    headroom_job,
    headroom_name,
    openings_a_month,
    plan_headroom,
    stamp,
    wanted_now,
)
from gpu_fleet.core.kubernetes.objects import epoch, is_ours
from gpu_fleet.core.spec import ClusterSpec, SpecErrors
from gpu_fleet.core.spec.capacity import HeadroomWindow
from tests.unit.core.cluster_objects import NOW, POOL
from tests.unit.core.specs import demo_spec

BERLIN = "Europe/Berlin"
WEEKDAYS = {"schedule": "0 8 * * 1-5", "duration": "10h", "timeZone": BERLIN, "nodes": 2}


def window(**changes: Any) -> HeadroomWindow:
    return HeadroomWindow.model_validate(WEEKDAYS | changes)


def with_headroom(*windows: dict[str, Any], **changes: Any) -> ClusterSpec:
    return demo_spec(nodePools__0__capacity={"headroom": list(windows or (WEEKDAYS,))}, **changes)


def at(text: str, zone: str = BERLIN) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


# --- windows ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("now", "closes"),
    [
        ("2026-11-30T07:59:59", None),
        ("2026-11-30T08:00:00", "2026-11-30T18:00:00"),
        ("2026-11-30T12:34:56", "2026-11-30T18:00:00"),
        ("2026-11-30T17:59:59", "2026-11-30T18:00:00"),
        ("2026-11-30T18:00:00", None),
        ("2026-11-28T12:00:00", None),
        ("2026-07-01T08:00:00", "2026-07-01T18:00:00"),
    ],
    ids=["before", "as it opens", "within", "last second", "as it closes", "Saturday", "summer"],
)
def test_a_window_is_open_on_the_clock_of_its_time_zone(now: str, closes: str | None) -> None:
    assert closes_at(window(), at(now)) == (None if closes is None else at(closes))


def test_a_window_over_the_change_of_the_clock_lasts_as_long_as_any_other() -> None:
    night = window(schedule="0 1 * * *", duration="4h")
    for change in ("2026-03-29", "2026-10-25"):
        opened = at(f"{change}T01:00:00")
        assert closes_at(night, opened) == opened + 4 * 3600


def test_a_window_that_crosses_midnight_is_that_of_the_day_before() -> None:
    night = window(schedule="0 22 * * 5", duration="12h")
    assert closes_at(night, at("2026-11-28T03:00:00")) == at("2026-11-28T10:00:00")


def test_of_windows_that_are_open_at_once_the_largest_counts_and_each_node_stays_for_the_longest() -> None:
    day, noon = window(nodes=1), window(schedule="0 12 * * 1-5", duration="2h", nodes=3)
    evening = at("2026-11-30T18:00:00")
    afternoon = at("2026-11-30T14:00:00")
    assert wanted_now([day, noon], at("2026-11-30T13:00:00")) == {0: evening, 1: afternoon, 2: afternoon}
    assert wanted_now([day, noon], at("2026-11-30T15:00:00")) == {0: evening}
    assert wanted_now([], at("2026-11-30T15:00:00")) == {}


def test_a_window_that_is_about_to_close_buys_nothing() -> None:
    closes = at("2026-11-30T18:00:00")
    assert wanted_now([window()], closes - LEAST_LEFT_S) == {0: closes, 1: closes}
    assert wanted_now([window()], closes - LEAST_LEFT_S + 1) == {}


# --- plan ------------------------------------------------------------------------------------------------------------
END = NOW + 3600


def job(index: int, *, until: float = END, ended: str = "", deleting: bool = False) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": headroom_name(POOL, index), "annotations": {UNTIL: stamp(until)}}
    if deleting:
        metadata["deletionTimestamp"] = stamp(NOW)
    conditions = [{"type": ended, "status": "True"}] if ended else []
    return {"kind": "Job", "metadata": metadata, "status": {"startTime": stamp(NOW - 60), "conditions": conditions}}


@pytest.mark.parametrize(
    ("found", "field", "expected"),
    [
        ([], "create", {0: END}),
        ([job(0)], "kept", (headroom_name(POOL, 0),)),
        ([job(0, ended="Failed")], "displaced", (headroom_name(POOL, 0),)),
        ([job(0, ended="Failed", until=NOW - 1)], "create", {0: END}),
        ([job(0, ended="Failed", until=NOW - 1)], "remove", (headroom_name(POOL, 0),)),
        ([job(0, until=END + 3600)], "extend", {headroom_name(POOL, 0): END}),
        ([job(0, until=END + 30)], "kept", (headroom_name(POOL, 0),)),
        ([job(0), job(1)], "remove", (headroom_name(POOL, 1),)),
        ([job(0, deleting=True)], "create", {0: END}),
    ],
    ids=[
        "nothing there",
        "as it is to be",
        "displaced in this window",
        "displaced in an earlier window",
        "of an earlier window",
        "another end",
        "the same end but for seconds",
        "one too many",
        "being deleted",
    ],
)
def test_plan(found: list[dict[str, Any]], field: str, expected: object) -> None:
    assert getattr(plan_headroom(POOL, {0: END}, found, NOW), field) == expected


def test_carrying_a_plan_out_leaves_nothing_to_do() -> None:
    plan = plan_headroom(POOL, {0: END, 1: END}, [job(0)], NOW)
    after = plan_headroom(POOL, {0: END, 1: END}, [job(0), *(job(index) for index in plan.create)], NOW + 5)
    assert (after.create, after.extend, after.remove, len(after.kept)) == ({}, {}, (), 2)


def test_when_no_window_is_open_everything_goes() -> None:
    plan = plan_headroom(POOL, {}, [job(0), job(1, ended="Complete")], NOW)
    assert (plan.create, plan.remove) == ({}, (headroom_name(POOL, 0), headroom_name(POOL, 1)))


def test_an_extended_job_ends_when_its_window_closes() -> None:
    assert deadline_s(job(0), END, NOW) == 3600 + 60
    assert deadline_s({}, NOW - 5, NOW) == 1


# --- the Job ---------------------------------------------------------------------------------------------------------
def made(pool: str = POOL, **changes: Any) -> dict[str, Any]:
    spec = with_headroom(**changes)
    return headroom_job(
        *("demo", spec.pool(pool), 0),
        until=END,
        now=NOW,
        physical=8 if pool == "whole-a100" else 1,
        image="pause",
        run="gpu_headroom.demo/r",
        run_label="abc",
    )


def test_the_job_ends_by_itself_also_without_a_node_and_is_not_repeated() -> None:
    job_spec = made()["spec"]
    assert job_spec["activeDeadlineSeconds"] == 3600
    assert (job_spec["backoffLimit"], job_spec["completions"], job_spec["parallelism"]) == (0, 1, 1)
    # It is still there when the window closes: a run that comes meanwhile sees that it has been displaced.
    assert job_spec["ttlSecondsAfterFinished"] >= 3600
    assert epoch(made()["metadata"]["annotations"][UNTIL]) == END


def test_its_pod_gives_way_to_every_other_and_holds_a_whole_node() -> None:
    pod = made("whole-a100")["spec"]["template"]
    assert pod["spec"]["priorityClassName"] == "gpu-fleet-placeholder"
    assert pod["spec"]["containers"][0]["resources"]["requests"]["nvidia.com/gpu"] == "8"
    assert pod["spec"]["restartPolicy"] == "Never"
    assert pod["spec"]["nodeSelector"]["karpenter.sh/nodepool"] == "whole-a100"
    [apart] = pod["spec"]["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert apart["labelSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    assert is_ours(pod)
    # Unlike a placeholder that asks for a new node, it may take an idle one.
    assert "nodeAffinity" not in pod["spec"]["affinity"]


@pytest.mark.parametrize("pool", ["a", "p" * 63])
def test_the_jobs_name_leaves_room_for_its_pods_suffix(pool: str) -> None:
    names = {headroom_name(pool, index) for index in range(200)}
    assert len(names) == 200
    assert max(map(len, names)) <= 63 - 6


# --- cost ------------------------------------------------------------------------------------------------------------
PRICES = PriceList("us-west-2", "2026-01-01", "a page", {"g5.xlarge": 1.0, "g5.2xlarge": 2.0})


@pytest.mark.parametrize(
    ("schedule", "openings"),
    [("0 8 * * 1-5", 261 / 12), ("@daily", 365 / 12), ("0 0 1 * *", 1.0), ("0 * * * *", 730.0), ("* * * * *", 43800.0)],
)
def test_openings_a_month(schedule: str, openings: float) -> None:
    assert openings_a_month(window(schedule=schedule)) == pytest.approx(openings, rel=0.01)


def test_what_a_window_costs_is_said_with_the_date_of_its_price() -> None:
    pool = with_headroom(nodePools__0__capacityTypes=["on-demand"]).pool(POOL)
    [cost] = headroom_costs(pool, PRICES)
    assert cost.usd == pytest.approx(2 * 10 * 261 / 12 * 1.0)
    assert str(cost) == (
        f"headroom of pool {POOL} (0 8 * * 1-5 {BERLIN}): 2 node(s) × 10 h × 21.8 openings a month = 435.00 USD/month "
        "at the list price of g5.xlarge of 2026-01-01 (1.00 USD/h)"
    )


def test_spot_and_several_types_cost_at_most_that() -> None:
    pool = with_headroom(nodePools__0__instanceTypes=["g5.xlarge", "g5.2xlarge"]).pool(POOL)
    [cost] = headroom_costs(pool, PRICES)
    assert "at most 870.00 USD/month at the list price of g5.2xlarge" in str(cost)


def test_a_price_that_is_not_known_is_not_zero() -> None:
    pool = with_headroom(nodePools__0__instanceTypes=["g5.xlarge", "g6.xlarge"]).pool(POOL)
    [cost] = headroom_costs(pool, PRICES)
    assert cost.usd is None
    assert str(cost).endswith("the price of g6.xlarge is not known")


def test_windows_that_overlap_themselves_cost_no_more_than_all_the_time() -> None:
    pool = with_headroom(WEEKDAYS | {"schedule": "0 * * * *"}).pool(POOL)
    [cost] = headroom_costs(pool, PRICES)
    assert cost.hours == 2 * 730.0
    assert "all the time, 730 h a month" in str(cost)
    assert headroom_costs(demo_spec().pool(POOL), PRICES) == []


# --- the cluster file ------------------------------------------------------------------------------------------------
def pool_of(index: int, **capacity: Any) -> dict[str, Any]:
    return {f"nodePools__{index}__capacity": capacity}


@pytest.mark.parametrize(
    ("changes", "field", "word"),
    [
        (pool_of(0, headroom=[WEEKDAYS | {"nodes": 5}]), "nodePools[0].capacity.headroom[0].nodes", "limits.nodes"),
        (pool_of(0, headroom=[WEEKDAYS], hold=5), "nodePools[0].capacity.hold", "remove hold"),
        (
            pool_of(0, headroom=[WEEKDAYS]) | pool_of(1, headroom=[WEEKDAYS | {"timeZone": "UTC", "nodes": 1}]),
            "nodePools[1].capacity.headroom[0].timeZone",
            "one time zone",
        ),
        (
            pool_of(0, headroom=[WEEKDAYS]) | {"nodePools__0__manage": False},
            "nodePools[0].capacity.headroom",
            "pool's owner",
        ),
        (pool_of(0, headroom=[WEEKDAYS | {"schedule": "8"}]), "nodePools[0].capacity.headroom[0].schedule", "five"),
        (pool_of(0, headroom=[WEEKDAYS | {"duration": "10m"}]), "nodePools[0].capacity.headroom[0].duration", "15m"),
        (pool_of(0, headroom=[WEEKDAYS | {"duration": "169h"}]), "nodePools[0].capacity.headroom[0].duration", "168h"),
        *(
            (pool_of(0, headroom=[WEEKDAYS | {"timeZone": zone}]), "nodePools[0].capacity.headroom[0].timeZone", "IANA")
            for zone in ("Berlin", "", "../etc/passwd", "Europe", "CEST")
        ),
        (pool_of(0, headroom=[WEEKDAYS | {"nodes": 0}]), "nodePools[0].capacity.headroom[0].nodes", "1 or more"),
        (
            pool_of(0, headroom=[WEEKDAYS | {"node": 1}]),
            "nodePools[0].capacity.headroom[0].node",
            "correct its spelling",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_a_remedy(changes: dict[str, Any], field: str, word: str) -> None:
    with pytest.raises(SpecErrors) as refused:
        demo_spec(**changes)
    [problem] = [each for each in refused.value.problems if each.field == field]
    assert word in str(problem)


def test_without_headroom_nothing_is_other_than_before() -> None:
    spec = demo_spec()
    assert all(pool.capacity.headroom == () for pool in spec.node_pools)
    assert datetime.fromtimestamp(NOW, UTC).year == 2026
