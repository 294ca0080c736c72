"""After the runs of the session: no credential anywhere that Airflow keeps or shows."""

from __future__ import annotations

import base64
import gzip
import json
import shutil
import sqlite3
import zlib
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.fleet import LIFECYCLE, TEARDOWN, Fleet

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

#: The beginning of every EKS token; of a private key; of what a helm release Secret holds once base64 is taken off
#: (helm encodes gzip in base64, Kubernetes encodes that again).
PATTERNS = {
    "an EKS token": b"k8s-aws-v1.",
    "a private key": b"PRIVATE KEY-----",
    **{
        f"a private key ({kind or 'PKCS8 '}in base64)": base64.b64encode(f"-----BEGIN {kind}PRIVATE".encode())[:24]
        for kind in ("", "RSA ", "EC ")
    },
    "a kubeconfig's key": b"client-key-data",
    "a helm release (base64 of gzip)": b"H4sIAAAAAAA",
    "a helm release (base64 twice)": b"SDRzSUFBQUFBQUF",
}
MAX_DEPTH = 6


@dataclass(frozen=True)
class Finding:
    """A secret, and where it was found."""

    what: str
    where: str


def readings(value: Any, depth: int = 0) -> Iterator[bytes]:
    """A stored value as bytes, and everything that it holds once it is decoded: JSON, zlib, gzip, base64."""
    if value is None or isinstance(value, (int, float)) or depth > MAX_DEPTH:
        return
    data = value if isinstance(value, bytes) else str(value).encode()
    yield data
    for decode in (zlib.decompress, gzip.decompress, _base64):
        with suppress(Exception):
            yield from readings(decode(data), depth + 1)
    with suppress(ValueError):
        document = json.loads(data)
        if isinstance(document, str):
            yield from readings(document, depth + 1)
        elif isinstance(document, (dict, list)):
            for text in _texts(document):
                yield from readings(text, depth + 1)


def _base64(data: bytes) -> bytes:
    if len(data) < 24:
        raise ValueError("too short to hide anything")
    return base64.b64decode(data, validate=True)


def _texts(document: Any) -> Iterator[str]:
    if isinstance(document, str):
        yield document
    elif isinstance(document, dict):
        for key, value in document.items():
            yield str(key)
            yield from _texts(value)
    elif isinstance(document, list):
        for value in document:
            yield from _texts(value)


def scan(value: Any, secrets: dict[str, bytes], where: str) -> Iterator[Finding]:
    for data in readings(value):
        for what, secret in secrets.items():
            if secret in data:
                yield Finding(what, where)


def scan_database(path: Path, secrets: dict[str, bytes]) -> Iterator[Finding]:
    """Every column of every row of every table."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            rows = connection.execute(f'SELECT * FROM "{table}"')  # noqa: S608 - the name comes from the database
            columns = [column[0] for column in rows.description]
            for row in rows:
                for column, value in zip(columns, row, strict=True):
                    yield from scan(value, secrets, f"{table}.{column}")


def scan_files(folders: Iterable[Path], secrets: dict[str, bytes]) -> Iterator[Finding]:
    """Every line of every file, and every file as a whole."""
    for folder in folders:
        files = [folder] if folder.is_file() else [path for path in folder.rglob("*") if path.is_file()]
        for path in files:
            for line in path.read_bytes().splitlines():
                yield from scan(line, secrets, path.name)


@pytest.fixture(scope="module")
def secrets(the_fleet: Fleet) -> dict[str, bytes]:
    """Everything that must be nowhere."""
    state, fleet = the_fleet.stack.sandbox_state(), the_fleet
    settings = fleet.stack.environment
    found = {
        "the AWS secret key": fleet.environment["AWS_SECRET_ACCESS_KEY"],
        "the sandbox's control token": state["control"]["token"],
        "the password of Airflow's user": fleet.stack.password(),
    }
    for key in ("CORE__FERNET_KEY", "API__SECRET_KEY", "API_AUTH__JWT_SECRET"):
        if f"AIRFLOW__{key}" in settings:
            found[f"Airflow's {key}"] = settings[f"AIRFLOW__{key}"]
    return {**PATTERNS, **{what: secret.encode() for what, secret in found.items()}}


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
    logs = ran.stack.airflow_home / "logs"
    files = [path for path in logs.rglob("*.log") if "dag_id=" in str(path)]
    assert len(files) > 60
    # airflow.log is what the scheduler, the triggerer and the API server print. At its start ``airflow standalone``
    # prints the generated password of its only user there, as it does in anybody's terminal.
    without_password = {what: secret for what, secret in secrets.items() if "password" not in what}
    assert set(scan_files([logs], secrets)) == set()
    assert set(scan_files([ran.stack.build_dir / "airflow.log"], without_password)) == set()


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
