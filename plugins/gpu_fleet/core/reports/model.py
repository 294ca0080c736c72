"""What a report is made of: everything that a run has recorded about its pools."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gpu_fleet.core.interruptions.report import InterruptionReport
from gpu_fleet.core.pools.assets import TORN_DOWN, Finding, PoolState, finding_of
from gpu_fleet.core.pools.history import VerdictAt
from gpu_fleet.core.stages.summary import STAGES, StageReport
from gpu_fleet.core.validation.report import SCHEMA, Outcome, PoolReport

#: Keys of the XComs that a report is made of; the tasks that push them have the same (a test compares them).
REPORT, VERDICT, DRIFT, UNREAD, SKIPPED = "report", "verdict", "drift", "unread", "skipped"
INTERRUPTION, PLACEMENT, ADMISSION = "interruption", "placement", "admission"
XCOM_KEYS = (REPORT, VERDICT, DRIFT, UNREAD, SKIPPED, INTERRUPTION, PLACEMENT, ADMISSION, STAGES)

#: Outcomes of a pool that need no action.
_QUIET = frozenset({Outcome.PASSED, Outcome.BUSY, Outcome.IDLE, Outcome.SKIPPED, TORN_DOWN})


@dataclass(frozen=True)
class PoolSection:
    """One pool in one run.

    :ivar was: the pool's state before.
    :ivar now: the pool's state after; ``None``: nothing has been published yet.
    :ivar remediation: what was done about failed nodes.
    :ivar older: node -> how it differs from the pool's present template; these nodes were not tested.
    :ivar pre_pull: ``pulls`` (node -> image -> seconds) and ``failure`` (why images are missing, in words); empty if no
        node was to pull images.
    :ivar history: newest first; ``None``: the reader has no permission to see it.
    :ivar drifted: nodes that are not what would be launched today; no defect of the pool.
    :ivar stages: where the time of the run's new nodes went; ``None``: it was not recorded.
    :ivar ladder: what the wait for capacity has tried, rung by rung.
    :ivar lower_rungs: that nodes stand on a lower rung; no defect of the pool either.
    :ivar admission: of a gated pool: which nodes were opened, and which stay closed.
    """

    name: str
    finding: Finding
    reports: tuple[PoolReport, ...] = ()
    was: PoolState | None = None
    now: PoolState | None = None
    valid_until: str | None = None
    remediation: Mapping[str, Any] | None = None
    history: tuple[VerdictAt, ...] | None = ()
    drifted: tuple[Mapping[str, Any], ...] = ()
    older: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    stages: StageReport | None = None
    ladder: Mapping[str, Any] | None = None
    lower_rungs: str = ""
    admission: Mapping[str, Any] | None = None
    pre_pull: Mapping[str, Any] = field(default_factory=dict)

    @property
    def bad(self) -> bool:
        """Whether a person has to act."""
        return self.finding.outcome not in _QUIET

    @property
    def proven(self) -> bool:
        return self.finding.outcome == Outcome.PASSED


@dataclass(frozen=True)
class RunReport:
    """One run.

    :ivar state: Airflow's state of the run.
    :ivar started: ISO 8601, as far as known.
    :ivar ended: ISO 8601, as far as known.
    :ivar drift: differences between cluster and spec; ``None``: they were not compared.
    :ivar unread: what could not be compared with the spec.
    :ivar skipped: why the run tested nothing, as ``ClusterBusy: …``.
    :ivar unreadable: XComs that are not stored as JSON, for example because a custom backend keeps them elsewhere.
    :ivar root: what precedes the paths of links: the address of the Airflow UI, or nothing.
    :ivar interruption: of a drain of interrupted nodes: what it came to.
    :ivar placement: where its pods went: the finding of the gate ``pods_placed``.
    """

    cluster: str
    dag_id: str
    run_id: str
    state: str
    pools: tuple[PoolSection, ...]
    started: str | None = None
    ended: str | None = None
    drift: tuple[Mapping[str, Any], ...] | None = None
    unread: tuple[Mapping[str, Any], ...] = ()
    skipped: str = ""
    unreadable: tuple[str, ...] = ()
    root: str = ""
    interruption: InterruptionReport | None = None
    placement: Mapping[str, Any] | None = None

    @property
    def failed(self) -> bool:
        """Whether the run failed in Airflow, perhaps for a cause outside the pools: a task before or after them."""
        return self.state == "failed"

    @property
    def outcome(self) -> Outcome:
        """The most decisive outcome of the run's pools; drift is a failure, and what was not compared is no pass."""
        if self.drift or self.failed or any(pool.bad for pool in self.pools):
            return Outcome.FAILED
        if self.interruption is not None:
            return Outcome.FAILED if self.interruption.bad else Outcome.PASSED
        if self.unread:
            return Outcome.INCONCLUSIVE
        if self.skipped:
            return Outcome.SKIPPED
        if any(pool.proven for pool in self.pools):
            return Outcome.PASSED
        return Outcome.BUSY if any(pool.finding.outcome == Outcome.BUSY for pool in self.pools) else Outcome.IDLE

    def headline(self) -> str:
        """One sentence: what a person who is paged reads first."""
        if self.interruption is not None:
            words = self.interruption.headline()
            return f"{words}; but the run failed" if self.failed else words
        bad = [pool for pool in self.pools if pool.bad]
        drifted = f"; {len(self.drift)} difference(s) from the spec" if self.drift else ""
        drifted += f"; {len(self.unread)} object(s) could not be compared with the spec" if self.unread else ""
        if self.skipped and not self.pools:
            return f"Nothing was tested: {self.skipped}{drifted}"
        if bad:
            more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
            first = bad[0]
            return (
                f"{len(bad)} of {len(self.pools)} pool(s) failed: {first.name}: {first.finding.reason}{more}{drifted}"
            )
        if self.failed and not self.drift:
            drifted += "; but the run failed: its first failed task's log names the cause"
        proven = [pool.name for pool in self.pools if pool.proven]
        quiet = [f"{pool.name} {str(pool.finding.outcome).lower()}" for pool in self.pools if not pool.proven]
        if proven:
            return f"{', '.join(proven)} proven{''.join(f', {words}' for words in quiet)}{drifted}"
        return f"Nothing was proven: {', '.join(quiet) or 'no pool was tested'}{drifted}"

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": "gpu-fleet.io/run-report/v1",
            "cluster": self.cluster,
            "dagId": self.dag_id,
            "runId": self.run_id,
            "state": self.state,
            "startedAt": self.started,
            "endedAt": self.ended,
            "outcome": str(self.outcome),
            "headline": self.headline(),
            "drift": None if self.drift is None else [dict(item) for item in self.drift],
            "unread": [dict(item) for item in self.unread],
            "skipped": self.skipped,
            "unreadable": list(self.unreadable),
            "pools": [_pool_json(pool) for pool in self.pools],
            "interruption": None if self.interruption is None else self.interruption.to_json(),
            "placement": None if self.placement is None else dict(self.placement),
        }


def _pool_json(pool: PoolSection) -> dict[str, Any]:
    return {
        "pool": pool.name,
        "outcome": str(pool.finding.outcome),
        "reason": pool.finding.reason,
        "message": pool.finding.message,
        "without": list(pool.finding.without),
        "was": None if pool.was is None else str(pool.was),
        "now": None if pool.now is None else str(pool.now),
        "validUntil": pool.valid_until,
        "remediation": None if pool.remediation is None else dict(pool.remediation),
        "admission": None if pool.admission is None else dict(pool.admission),
        "drifted": [dict(item) for item in pool.drifted],
        "older": {name: list(why) for name, why in pool.older.items()},
        "stages": None if pool.stages is None else pool.stages.to_json(),
        "ladder": dict(pool.ladder) if pool.ladder is not None else None,
        "lowerRungs": pool.lower_rungs,
        **({"prePull": dict(pool.pre_pull)} if pool.pre_pull else {}),
        "reports": [report.to_json() for report in pool.reports],
        "history": None if pool.history is None else [verdict.to_json() for verdict in pool.history],
    }


@dataclass(frozen=True)
class Left:
    """One XCom of a run."""

    task_id: str
    key: str
    value: Any


@dataclass(frozen=True)
class Remains:
    """Everything that a run left, sorted by kind.

    :ivar reports: by pool.
    :ivar verdicts: by pool.
    :ivar drift: ``None``: cluster and spec were not compared.
    """

    reports: Mapping[str, tuple[PoolReport, ...]]
    verdicts: Mapping[str, Mapping[str, Any]]
    drift: tuple[Mapping[str, Any], ...] | None
    unread: tuple[Mapping[str, Any], ...]
    skipped: str
    unreadable: tuple[str, ...]
    interruption: InterruptionReport | None = None
    placement: Mapping[str, Any] | None = None
    stages: Mapping[str, StageReport] = field(default_factory=dict)
    admissions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def pools(self) -> list[str]:
        """A pool is known by its verdict or, before that is published, by its reports."""
        return sorted({*self.reports, *self.verdicts})


def sort_out(left: Iterable[Left]) -> Remains:
    """Total: malformed values are named as unreadable, those of other tasks are ignored."""
    reports: dict[str, list[PoolReport]] = {}
    verdicts: dict[str, Mapping[str, Any]] = {}
    drift: list[Mapping[str, Any]] | None = None
    unread: list[Mapping[str, Any]] = []
    skipped = ""
    unreadable: list[str] = []
    interruption: InterruptionReport | None = None
    placement: Mapping[str, Any] | None = None
    stages: dict[str, StageReport] = {}
    admissions: dict[str, Mapping[str, Any]] = {}
    for item in left:
        try:
            if item.key == REPORT:
                # The leak check has its own report under the same key.
                if not isinstance(item.value, Mapping) or item.value.get("schema") == SCHEMA:
                    report = PoolReport.from_json(item.value)
                    reports.setdefault(report.pool, []).append(report)
            elif item.key == VERDICT:
                verdicts[str(item.value["pool"])] = dict(item.value)
            elif item.key == ADMISSION:
                admissions[str(item.value["pool"])] = dict(item.value)
            elif item.key == DRIFT:
                found: list[Mapping[str, Any]] = [dict(entry) for entry in item.value]
                drift = [*(drift or []), *found]
            elif item.key == UNREAD:
                unread += [dict(entry) for entry in item.value]
            elif item.key == INTERRUPTION:
                told = InterruptionReport.from_json(item.value)
                # Several tasks of a drain tell of it, the later one more.
                interruption = told if interruption is None or told.ended >= interruption.ended else interruption
            elif item.key == PLACEMENT:
                placement = dict(item.value)
            elif item.key == STAGES:
                told_of = StageReport.from_json(item.value)
                stages[told_of.pool] = told_of
            elif item.key == SKIPPED and isinstance(item.value, Mapping):
                skipped = f"{item.value['reason']}: {item.value['message']}"
        except (KeyError, TypeError, ValueError, AttributeError):
            unreadable.append(f"{item.task_id}: {item.key}")
    return Remains(
        {pool: tuple(sorted(found, key=lambda report: report.started_at)) for pool, found in reports.items()},
        verdicts,
        None if drift is None else tuple(drift),
        tuple(unread),
        skipped,
        tuple(unreadable),
        interruption,
        placement,
        stages,
        admissions,
    )


def section(remains: Remains, pool: str, history: tuple[VerdictAt, ...] | None = ()) -> PoolSection:
    """One pool's part of the report."""
    reports, verdict = remains.reports.get(pool, ()), remains.verdicts.get(pool)
    admission = remains.admissions.get(pool)
    if verdict is None:
        finding = finding_of([one.summary() for one in reports], None)
        stages = remains.stages.get(pool)
        return PoolSection(pool, finding, reports, history=history, stages=stages, admission=admission)
    remediation, without = verdict.get("remediation"), verdict.get("without")
    drifted = verdict.get("drifted")
    return PoolSection(
        name=pool,
        finding=Finding(
            str(verdict.get("outcome", "")),
            str(verdict.get("reason", "")),
            str(verdict.get("message", "")),
            tuple(str(node) for node in without) if isinstance(without, list) else (),
        ),
        reports=reports,
        was=_state(verdict.get("was")),
        now=_state(verdict.get("now")),
        valid_until=str(verdict["validUntil"]) if verdict.get("validUntil") else None,
        remediation=remediation if isinstance(remediation, Mapping) else None,
        history=history,
        drifted=tuple(item for item in drifted if isinstance(item, Mapping)) if isinstance(drifted, list) else (),
        older=_older(verdict.get("older")),
        stages=remains.stages.get(pool),
        ladder=ladder if isinstance(ladder := verdict.get("ladder"), Mapping) else None,
        lower_rungs=str(verdict.get("lowerRungs") or ""),
        admission=admission,
        pre_pull=_pre_pull(verdict.get("prePull")),
    )


def _older(value: Any) -> dict[str, tuple[str, ...]]:
    found = value if isinstance(value, Mapping) else {}
    return {str(name): tuple(map(str, why)) for name, why in found.items() if isinstance(why, list)}


def _pre_pull(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {}
    nodes = value.get("pulls")
    pulls = {
        str(node): {str(image): took for image, took in images.items() if took is None or isinstance(took, int | float)}
        for node, images in (nodes if isinstance(nodes, Mapping) else {}).items()
        if isinstance(images, Mapping)
    }
    return {"pulls": pulls, "failure": str(value.get("failure") or "")}


def _state(value: Any) -> PoolState | None:
    try:
        return PoolState(value)
    except ValueError:
        return None
