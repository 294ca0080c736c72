"""Asks Airflow's API server, with the plugin as its loader finds it, and prints the answers as JSON.

In a process of its own: Airflow reads its configuration once. Argument: the requests as JSON, a list of
``[user, path, accept]``. ``nobody`` has no role, ``viewer`` may read, ``limited`` may read one DAG and no assets.
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.api_fastapi.app import create_app, get_auth_manager
from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
from airflow.models.asset import AssetEvent, AssetModel
from airflow.models.base import Base
from airflow.models.dag import DagModel
from airflow.models.dagbundle import DagBundleModel
from airflow.models.dagrun import DagRun
from airflow.models.taskinstance import TaskInstance
from airflow.models.xcom import XComModel
from airflow.utils.db import import_all_models
from airflow.utils.session import create_session
from sqlalchemy import insert
from starlette.testclient import TestClient

from gpu_fleet.core.pools.assets import Topic, uri
from tests.unit.report_objects import EVIL, broken, check, healthy, host, node, report

LIFECYCLE, REVALIDATE = "gpu_lifecycle.demo", "gpu_revalidate.demo"
RUN = "scheduled__2026-09-21T14:13:00+00:00"
AT = datetime(2026, 9, 21, 14, 13, tzinfo=UTC)


def fill() -> None:
    """Runs of two DAGs, their XComs, and the events of one pool."""
    import airflow.settings as settings

    import_all_models()
    Base.metadata.create_all(settings.engine)
    with create_session() as session:
        session.add(DagBundleModel(name="dags"))
        session.flush()
        for dag_id in (LIFECYCLE, REVALIDATE):
            session.add(DagModel(dag_id=dag_id, bundle_name="dags", fileloc="x", relative_fileloc="x"))
        session.flush()
        hostile = report(node(1, check("probes", "Failed", "OutputNotJson", EVIL)), pool=EVIL)  # type: ignore[arg-type]
        verdict = {
            "pool": "shared-a10g",
            "outcome": "Failed",
            "reason": "AllocatableMismatch",
            "message": "m",
            "was": "Ready",
            "now": "NotReady",
        }
        run(session, REVALIDATE, RUN, {"report": broken().to_json(), "verdict": verdict, "drift": []})
        run(session, REVALIDATE, "without_reports", {})
        run(session, REVALIDATE, "elsewhere", {"report": "s3://bucket/x", "verdict": 7, "drift": {"a": 1}})
        run(session, REVALIDATE, "hostile", {"report": hostile.to_json()})
        run(session, LIFECYCLE, "manual__1", {"report": healthy().to_json()})
        events(session)


def run(session: Any, dag_id: str, run_id: str, left: dict[str, Any]) -> None:
    """Rows written past the models, which want a serialised DAG that nobody reads here."""
    values = {
        "dag_id": dag_id,
        "run_id": run_id,
        "state": "failed",
        "run_type": "manual",
        "start_date": AT,
        "logical_date": None,
        "run_after": AT,
        "queued_at": AT,
        "clear_number": 0,
        "log_template_id": None,
    }
    key = session.execute(insert(DagRun).values(**values)).inserted_primary_key[0]
    task = {"task_id": "validation.pool_x.publish", "dag_id": dag_id, "run_id": run_id, "map_index": -1}
    session.execute(insert(TaskInstance).values(**task, pool="default_pool", pool_slots=1, max_tries=0, try_number=1))
    for name, value in left.items():
        session.execute(insert(XComModel).values(**task, dag_run_id=key, key=name, value=value, timestamp=AT))


def events(session: Any) -> None:
    ids = {}
    for topic in Topic:
        model = AssetModel(name=uri("demo", "shared-a10g", topic), uri=uri("demo", "shared-a10g", topic), group="asset")
        session.add(model)
        session.flush()
        ids[topic] = model.id
    good = {"was": "Unknown", "reason": "Validated", "message": "passed", "nodes": {host(1): "Passed"}}
    bad = {"was": "Ready", "reason": "GpuLost", "message": EVIL, "nodes": {host(1): f"Failed: {EVIL}"}}
    rows: list[tuple[Topic, int, str | None, Any]] = [
        (Topic.VALIDATED, 0, LIFECYCLE, good),
        (Topic.READY, 0, LIFECYCLE, good),
        (Topic.NOT_READY, 1, REVALIDATE, bad),
        (Topic.VALIDATED, 2, None, {}),
    ]
    for topic, days, dag_id, extra in rows:
        session.add(
            AssetEvent(
                asset_id=ids[topic],
                timestamp=AT + timedelta(days=days),
                source_dag_id=dag_id,
                source_run_id=dag_id and RUN,
                source_task_id=dag_id and "publish",
                extra=extra,
            )
        )


def tokens() -> dict[str, str]:
    manager = get_auth_manager()
    real = manager.is_authorized_dag, manager.is_authorized_asset

    def of_dag(*, user: Any, details: Any = None, **rest: Any) -> bool:
        if user.username == "limited" and (details is None or details.id != LIFECYCLE):
            return False
        return bool(real[0](user=user, details=details, **rest))

    manager.is_authorized_dag = of_dag
    manager.is_authorized_asset = lambda *, user, **rest: user.username != "limited" and real[1](user=user, **rest)
    users = [("nobody", None), ("viewer", "viewer"), ("limited", "viewer"), ("admin", "admin")]
    return {name: manager.generate_jwt(SimpleAuthManagerUser(username=name, role=role)) for name, role in users}


def main() -> None:
    fill()
    client = TestClient(create_app("core"), raise_server_exceptions=False)
    known = tokens()
    answers = []
    for user, path, accept in json.loads(sys.argv[1]):
        headers = {"accept": accept} | ({"authorization": f"Bearer {known[user]}"} if user else {})
        reply = client.get(path, headers=headers, follow_redirects=False)
        answers.append({"status": reply.status_code, "headers": dict(reply.headers), "text": reply.text})
    imported = [name for name in ("boto3", "kubernetes") if name in sys.modules]
    print("\n" + json.dumps({"answers": answers, "imported": imported}))


if __name__ == "__main__":
    main()
