"""No credential anywhere that Airflow keeps or shows: what is looked for, and where."""

from __future__ import annotations

import base64
import gzip
import json
import sqlite3
import zlib
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.e2e.fleet import Fleet

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


def secrets_of(fleet: Fleet) -> dict[str, bytes]:
    """Everything that must be nowhere."""
    state, settings = fleet.stack.sandbox_state(), fleet.stack.environment
    found = {
        "the AWS secret key": fleet.environment["AWS_SECRET_ACCESS_KEY"],
        "the sandbox's control token": state["control"]["token"],
        "the password of Airflow's user": fleet.stack.password(),
    }
    for key in ("CORE__FERNET_KEY", "API__SECRET_KEY", "API_AUTH__JWT_SECRET"):
        if f"AIRFLOW__{key}" in settings:
            found[f"Airflow's {key}"] = settings[f"AIRFLOW__{key}"]
    return {**PATTERNS, **{what: secret.encode() for what, secret in found.items()}}


def scan_logs(fleet: Fleet, secrets: dict[str, bytes]) -> Iterator[Finding]:
    """The logs of all tasks, and what the scheduler, the triggerer and the API server print."""
    yield from scan_files([fleet.stack.airflow_home / "logs"], secrets)
    # At its start ``airflow standalone`` prints the generated password of its only user, as in anybody's terminal.
    without_password = {what: secret for what, secret in secrets.items() if "password" not in what}
    yield from scan_files([fleet.stack.build_dir / "airflow.log"], without_password)


def scan_all(fleet: Fleet, secrets: dict[str, bytes]) -> set[Finding]:
    """What was found in the database and in the logs."""
    return {*scan_database(fleet.stack.database, secrets), *scan_logs(fleet, secrets)}
