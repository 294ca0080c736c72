"""Reads a run's report and a pool's history from Airflow's database: runs, XComs, asset events and asset states."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any

from airflow.models.asset import AssetEvent, AssetModel
from airflow.models.asset_state_store import AssetStateStoreModel
from airflow.models.dagrun import DagRun
from airflow.models.xcom import XComModel
from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from gpu_fleet.core.pools.assets import SCHEME, Topic, uri
from gpu_fleet.core.pools.history import SHOWN, Event, VerdictAt, verdicts
from gpu_fleet.core.reports.model import XCOM_KEYS, Left, RunReport, section, sort_out
from gpu_fleet.core.stages.history import KEY, StageHistory

#: Events read for each verdict that is shown: a proof that makes a pool ready has two events, and one more is
#: needed for the state before it.
_EVENTS_EACH = 2


def load_run(
    session: Session, dag_id: str, run_id: str, *, readable: Collection[str] | None, root: str = ""
) -> RunReport | None:
    """The report of one run; ``None``: there is no such run.

    :param readable: the DAGs whose events the reader may see; ``None``: no events at all.
    :param root: the prefix of the paths of links.
    """
    run = session.scalar(select(DagRun).where(DagRun.dag_id == dag_id, DagRun.run_id == run_id))
    if run is None:
        return None
    rows = session.execute(
        select(XComModel.task_id, XComModel.key, XComModel.value)
        .where(XComModel.dag_id == dag_id, XComModel.run_id == run_id, XComModel.key.in_(XCOM_KEYS))
        .order_by(XComModel.task_id, XComModel.map_index)
    )
    remains = sort_out([Left(row.task_id, row.key, _value(row)) for row in rows])
    clusters = [report.cluster for reports in remains.reports.values() for report in reports]
    cluster = next(iter(clusters), "") or dag_id.partition(".")[2] or dag_id
    pools = tuple(
        section(
            remains,
            pool,
            None if readable is None else tuple(load_history(session, cluster, pool, readable=readable)),
        )
        for pool in remains.pools
    )
    return RunReport(
        cluster=cluster,
        dag_id=dag_id,
        run_id=run_id,
        state=str(getattr(run.state, "value", run.state)),
        pools=pools,
        started=_iso(run.start_date),
        ended=_iso(run.end_date),
        drift=remains.drift,
        unread=remains.unread,
        skipped=remains.skipped,
        unreadable=remains.unreadable,
        root=root,
        interruption=remains.interruption,
        placement=remains.placement,
    )


def load_history(
    session: Session, cluster: str, pool: str, *, readable: Collection[str], limit: int = SHOWN
) -> list[VerdictAt]:
    """The pool's newest verdicts first, without those of DAGs that the reader may not see.

    Events without a DAG, made over the REST API, are seen by all who may read assets, as in Airflow itself
    (``airflow.api_fastapi.core_api.security.PermittedAssetEventFilter``).
    """
    topics = {uri(cluster, pool, topic): topic for topic in Topic}
    rows = session.execute(
        select(
            AssetModel.uri,
            AssetEvent.timestamp,
            AssetEvent.source_dag_id,
            AssetEvent.source_run_id,
            AssetEvent.extra,
        )
        .join(AssetModel, AssetModel.id == AssetEvent.asset_id)
        .where(
            AssetModel.uri.in_(topics),
            or_(AssetEvent.source_dag_id.in_(readable), AssetEvent.source_dag_id.is_(None)),
        )
        .order_by(AssetEvent.timestamp.desc())
        .limit(limit * _EVENTS_EACH + 1)
    )
    events = [
        Event(
            topics[row.uri],
            row.timestamp.timestamp(),
            row.source_dag_id or "",
            row.source_run_id or "",
            row.extra if isinstance(row.extra, Mapping) else {},
        )
        for row in rows
    ]
    return verdicts(events, limit)


def load_stages(session: Session, cluster: str) -> dict[str, StageHistory]:
    """Pool -> the stages of its nodes, of one cluster; pools of which nothing is recorded are left out.

    A history that a backend of the state store keeps elsewhere (``[workers] state_store_backend``) cannot be read here,
    and is empty.
    """
    first, last = f"{SCHEME}://{cluster}/", f"/{Topic.VALIDATED}"
    rows = session.execute(
        select(AssetModel.uri, AssetStateStoreModel.value)
        .join(AssetModel, AssetModel.id == AssetStateStoreModel.asset_id)
        .where(AssetModel.uri.startswith(first, autoescape=True), AssetStateStoreModel.key == KEY)
        .order_by(AssetModel.uri)
    )
    return {
        row.uri.removeprefix(first).removesuffix(last): StageHistory.from_json(_stored(row.value))
        for row in rows
        if row.uri.endswith(last)
    }


def _stored(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return None


def _value(row: Any) -> Any:
    """An XCom's value; ``None``, which is no report, if it cannot be read here."""
    try:
        return XComModel.deserialize_value(row)
    except Exception:  # noqa: BLE001  (a task or a backend may have stored anything)
        return None


def _iso(value: datetime | None) -> str | None:
    return value.isoformat(timespec="seconds") if value is not None else None
