"""Headroom: which placeholders a pool is to have now, and what its windows cost.

A placeholder is the pod of a Job of its own. The Job ends it when the window closes, also while it still waits for a
node: ``activeDeadlineSeconds`` of a Job counts from the Job's start, that of a pod from the pod's start on its node
(kubernetes v1.35 ``pkg/controller/job/job_controller.go``, ``pastActiveDeadline``), so a lone pod that found no node
would buy one at night. With ``backoffLimit: 0`` a placeholder that a user's pod, a drain or an interruption displaces
is not replaced before the next window: a burst of users buys what users need, and nothing on top.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from gpu_fleet.core.aws.costs import HOURS_PER_MONTH, Price, PriceList
from gpu_fleet.core.capacity.placeholders import pause_pod, placeholder_gpus
from gpu_fleet.core.kubernetes.names import (
    COMPONENT_HEADROOM,
    DOMAIN,
    LABEL_COMPONENT,
    LABEL_HOSTNAME,
    LABEL_NODE_POOL,
    LABEL_POOL,
    short_hash,
)
from gpu_fleet.core.kubernetes.objects import Object, annotations_of, created_at, deleting, epoch, is_true, name_of
from gpu_fleet.core.manifests.build import pool_labels

if TYPE_CHECKING:
    from gpu_fleet.core.spec import NodePool
    from gpu_fleet.core.spec.capacity import HeadroomWindow

#: Annotation of a Job: when its window closes (RFC 3339).
UNTIL = f"{DOMAIN}/headroom-until"
#: Seconds before the end at which a window is not opened any more: a node would come when it closes.
LEAST_LEFT_S = 300.0
#: Seconds that a Job's end may differ from its window's before it is corrected.
_SAME_S = 60.0
#: Openings after which the count for a month is extrapolated.
_MOST_OPENINGS = 1000
_YEAR = 365.0


def headroom_name(pool: str, index: int) -> str:
    name = f"{COMPONENT_HEADROOM}-{pool}-{index}"
    # A Job's name is a label value of its pods, and theirs have a suffix.
    return name if len(name) <= 52 else f"{name[:41].rstrip('-')}-{short_hash(pool, str(index))}"


# --- windows ---------------------------------------------------------------------------------------------------------
def closes_at(window: HeadroomWindow, now: float) -> float | None:
    """When the window closes that is open now; ``None``: none is.

    The schedule is read on the clock of the time zone, as Airflow reads it; the duration is elapsed time. Of an hour
    that the clock shows twice the first counts.
    """
    from croniter import croniter

    zone = ZoneInfo(window.time_zone)
    local = datetime.fromtimestamp(now, zone).replace(tzinfo=None, fold=0)
    # The moment itself counts: 'previous' is what lies strictly before.
    opened: datetime = croniter(window.schedule, local.replace(microsecond=999_999)).get_prev(datetime)
    closes = opened.replace(tzinfo=zone).timestamp() + window.duration.seconds
    return closes if now < closes else None


def wanted_now(windows: Iterable[HeadroomWindow], now: float) -> dict[int, float]:
    """Index of each placeholder -> when it ends: of windows that are open at once the one with the most nodes counts,
    and each placeholder stays for the last of them that includes it.
    """
    found: dict[int, float] = {}
    for window in windows:
        closes = closes_at(window, now)
        if closes is not None and closes - now >= LEAST_LEFT_S:
            for index in range(window.nodes):
                found[index] = max(closes, found.get(index, 0.0))
    return found


# --- plan ------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class HeadroomPlan:
    """
    :ivar create: index -> end of the Jobs to create.
    :ivar extend: name -> end of running Jobs whose window closes at another time by now.
    :ivar remove: Jobs to delete: of another window, or too many.
    :ivar kept: Jobs that are as they are to be.
    :ivar displaced: Jobs of this window whose placeholder had to go; they are not replaced.
    """

    create: Mapping[int, float]
    extend: Mapping[str, float]
    remove: tuple[str, ...]
    kept: tuple[str, ...]
    displaced: tuple[str, ...]


def plan_headroom(pool: str, wanted: Mapping[int, float], jobs: Iterable[Object], now: float) -> HeadroomPlan:
    """What to do so that the pool has its placeholders. Total; the same state gives the same plan.

    :param jobs: the pool's Jobs of headroom.
    """
    by_name = {name_of(job): job for job in jobs}
    create: dict[int, float] = {}
    extend: dict[str, float] = {}
    kept, displaced, mine = [], [], set()
    for index, until in sorted(wanted.items()):
        name = headroom_name(pool, index)
        job = by_name.get(name)
        ends = None if job is None or deleting(job) else epoch(annotations_of(job).get(UNTIL))
        if job is None or ends is None or ends <= now:
            create[index] = until  # absent, or left by an earlier window
            continue
        mine.add(name)
        if is_true(job, "Failed") or is_true(job, "Complete"):
            displaced.append(name)
        elif abs(ends - until) > _SAME_S:
            extend[name] = until
        else:
            kept.append(name)
    remove = tuple(sorted(set(by_name) - mine))
    return HeadroomPlan(create, extend, remove, tuple(kept), tuple(displaced))


def deadline_s(job: Object, until: float, now: float) -> int:
    """``activeDeadlineSeconds`` with which a running Job ends then."""
    started = epoch((job.get("status") or {}).get("startTime")) or created_at(job) or now
    return max(1, int(until - started))


def headroom_job(
    cluster: str, pool: NodePool, index: int, *, until: float, now: float, physical: int, image: str, run: str,
    run_label: str,
) -> dict[str, Any]:  # fmt: skip
    """A Job whose one pod keeps a node of the pool free until then; every other pod takes its place at once.

    Two of them never share a node. It is on any node of the present template that has the GPUs, an idle one first:
    Karpenter buys only what is missing.
    """
    name, seconds = headroom_name(pool.name, index), max(1, int(until - now))
    gpus = placeholder_gpus(pool, physical)
    pod = pause_pod(name, COMPONENT_HEADROOM, cluster, pool, gpus, image, run, run_label)
    spec = pod["spec"]
    spec["restartPolicy"] = "Never"
    spec["nodeSelector"] = {LABEL_NODE_POOL: pool.name, **pool_labels(pool)}
    own = {LABEL_COMPONENT: COMPONENT_HEADROOM, LABEL_POOL: pool.name}
    term = {"topologyKey": LABEL_HOSTNAME, "labelSelector": {"matchLabels": own}}
    spec["affinity"] = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}
    metadata = pod["metadata"]
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {**metadata, "annotations": {**metadata["annotations"], UNTIL: stamp(until)}},
        "spec": {
            "backoffLimit": 0,
            "completions": 1,
            "parallelism": 1,
            "activeDeadlineSeconds": seconds,
            # Kept until the window closes, so that a run of the same window sees what became of it.
            "ttlSecondsAfterFinished": seconds,
            "template": {
                "metadata": {"labels": metadata["labels"], "annotations": metadata["annotations"]},
                "spec": spec,
            },
        },
    }


def stamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# --- cost ------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class HeadroomCost:
    """What one window of a pool costs in a month if no job ever comes.

    :ivar openings: how often it opens in a month, on average over a year.
    :ivar hours: node-hours of a month.
    :ivar price: of one node-hour; the most expensive of the pool's types.
    :ivar instance_type: that type.
    :ivar date: of the price list.
    """

    pool: str
    window: HeadroomWindow
    openings: float
    hours: float
    price: Price
    instance_type: str
    date: str

    @property
    def usd(self) -> float | None:
        """Per month; ``None``: the price is unknown."""
        return None if self.price.usd is None else self.price.usd * self.hours

    def __str__(self) -> str:
        window = self.window
        when = f"{window.schedule} {window.time_zone}"
        words = f"headroom of pool {self.pool} ({when}): {window.nodes} node(s)"
        each = window.duration.seconds / 3600
        if each * self.openings > HOURS_PER_MONTH:
            words += f" all the time, {HOURS_PER_MONTH:.0f} h a month"
        else:
            words += f" × {each:g} h × {self.openings:.1f} openings a month"
        if self.usd is None:
            return f"{words}; the price of {self.instance_type} is not known"
        most = "at most " if self.price.at_most else ""
        return (
            f"{words} = {most}{self.usd:,.2f} USD/month at the list price of {self.instance_type} of {self.date} "
            f"({self.price.usd:.2f} USD/h)"
        )


def headroom_costs(pool: NodePool, prices: PriceList) -> list[HeadroomCost]:
    """What each of the pool's windows costs."""
    if not pool.capacity.headroom:
        return []
    known = [name for name in pool.instance_types if name in prices.hourly]
    kind = max(known, key=lambda name: prices.hourly[name], default=pool.instance_types[0])
    unsure = len(pool.instance_types) > 1 or set(pool.capacity_types) != {"on-demand"}
    complete = len(known) == len(pool.instance_types)
    price = Price(prices.hourly.get(kind) if complete else None, at_most=unsure)
    if not complete:
        kind = next(name for name in pool.instance_types if name not in known)
    found = []
    for window in pool.capacity.headroom:
        openings = openings_a_month(window)
        hours = min(openings * window.duration.seconds / 3600, HOURS_PER_MONTH) * window.nodes
        found.append(HeadroomCost(pool.name, window, openings, hours, price, kind, prices.date))
    return found


def openings_a_month(window: HeadroomWindow) -> float:
    """How often a window opens in a month, on average over a year: any year, in wall-clock time."""
    from croniter import croniter

    begin = datetime(2024, 12, 31, 23, 59, 59)  # noqa: DTZ001  (wall-clock time; the first moment counts)
    moments = croniter(window.schedule, begin)
    count, days = 0, _YEAR
    while count < _MOST_OPENINGS:
        passed = (moments.get_next(datetime) - begin).total_seconds() / 86400
        if passed >= _YEAR:
            break
        count += 1
        days = passed if count == _MOST_OPENINGS else _YEAR
    return count / days * _YEAR / 12


def cost_sentences(pools: Sequence[NodePool], prices: PriceList) -> list[str]:
    """For logs and notes: what all windows cost."""
    return [str(cost) for pool in pools for cost in headroom_costs(pool, prices)]
