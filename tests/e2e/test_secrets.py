"""No credential is anywhere that Airflow keeps or shows, and the scan for them would find one.

Each stack is scanned again at its end, after all its runs: see ``the_fleet``.
"""

from __future__ import annotations

import base64
import gzip
import json
import shutil
import sqlite3
import zlib
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.fleet import LIFECYCLE, TEARDOWN, Fleet
from tests.e2e.scanner import Finding, scan_database, scan_files, scan_logs, secrets_of

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def secrets(the_fleet: Fleet) -> dict[str, bytes]:
    return secrets_of(the_fleet)


@pytest.fixture(scope="module")
def ran(the_fleet: Fleet) -> Fleet:
    """There were a lifecycle and a teardown; if not in an earlier test, then now."""
    the_fleet.repair()
    rows = the_fleet.query("SELECT dag_id FROM dag_run WHERE state = 'success'")
    if not {LIFECYCLE, TEARDOWN} <= {row["dag_id"] for row in rows}:
        the_fleet.stand()
        the_fleet.teardown().succeeded()
    return the_fleet


def test_no_secret_in_the_database(ran: Fleet, secrets: dict[str, bytes]) -> None:
    assert set(scan_database(ran.stack.database, secrets)) == set()


def test_no_secret_in_the_logs(ran: Fleet, secrets: dict[str, bytes]) -> None:
    files = [path for path in (ran.stack.airflow_home / "logs").rglob("*.log") if "dag_id=" in str(path)]
    assert len(files) > 60
    assert set(scan_logs(ran, secrets)) == set()


def test_rendered_fields_and_triggers_were_among_what_was_scanned(ran: Fleet) -> None:
    """An empty table would prove nothing."""
    for table in ("rendered_task_instance_fields", "xcom", "log", "serialized_dag"):
        (row,) = ran.query(f"SELECT count(*) AS rows FROM {table}")  # noqa: S608
        assert row["rows"] > 0, table
    (row,) = ran.query("SELECT count(*) AS triggers FROM sqlite_master WHERE name = 'trigger'")
    assert row["triggers"] == 1


def test_trigger_rows_hold_no_secret_while_they_exist(ran: Fleet, secrets: dict[str, bytes]) -> None:
    """A trigger's row lives as long as its task waits; so one is looked at while a run waits for a cluster."""
    with ran.fault("eks-status", {"status": "UPDATING"}):
        run_id = ran.start(LIFECYCLE)
        ran.wait_for_task(LIFECYCLE, run_id, "preflight.cluster_active", "deferred")
        rows = ran.query("SELECT classpath, kwargs FROM trigger")
        assert any("GateTrigger" in row["classpath"] for row in rows)
        assert set(scan_database(ran.stack.database, secrets)) == set()
        ran.end_open_runs()


# --- the scanner itself ----------------------------------------------------------------------------------------------
def hidden(secret: str) -> dict[str, Any]:
    """The ways in which a value may be stored."""
    return {
        "plain": f"Authorization: Bearer {secret}",
        "JSON": json.dumps({"a": [{"b": f"x{secret}"}]}),
        "JSON in JSON": json.dumps(json.dumps({"token": secret})),
        "zlib": zlib.compress(json.dumps({"a": secret}).encode()),
        "gzip in base64": base64.b64encode(gzip.compress(secret.encode())).decode(),
        "base64 in JSON": json.dumps({"data": base64.b64encode(f"xx {secret} xx long enough".encode()).decode()}),
    }


@pytest.mark.parametrize("way", sorted(hidden("")))
def test_scanner_finds_what_is_planted_in_a_copy_of_the_database(
    ran: Fleet, secrets: dict[str, bytes], tmp_path: Path, way: str
) -> None:
    copy = tmp_path / "copy.db"
    shutil.copy(ran.stack.database, copy)
    with closing(sqlite3.connect(copy)) as connection, connection:
        value = hidden("k8s-aws-v1.aHR0cHM6Ly9zdHM")[way]
        # Any row: Airflow keeps the newest of each task, so after many runs the first are gone.
        changed = connection.execute(
            "UPDATE rendered_task_instance_fields SET rendered_fields = ? "
            "WHERE rowid = (SELECT min(rowid) FROM rendered_task_instance_fields)",
            (value,),
        )
        assert changed.rowcount == 1
    found = set(scan_database(copy, secrets))
    assert Finding("an EKS token", "rendered_task_instance_fields.rendered_fields") in found


@pytest.mark.parametrize("what", ["the AWS secret key", "the sandbox's control token", "a private key"])
def test_scanner_finds_what_is_planted_in_a_log(secrets: dict[str, bytes], tmp_path: Path, what: str) -> None:
    (tmp_path / "attempt=1.log").write_text(json.dumps({"event": f"x {secrets[what].decode()} y"}) + "\n")
    assert Finding(what, "attempt=1.log") in set(scan_files([tmp_path], secrets))
