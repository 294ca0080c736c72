"""A large fleet in several DAG files: each of them has a share of the clusters.

Airflow ends the parsing of a file, and the serialising of its DAGs, after ``[dag_processor]
dag_file_processor_timeout`` (50 s; airflow-core 3.3.2 ``dag_processing/manager.py``), and parses files side by side in
``parsing_processes``. So a family's file may be there several times: ``gpu_lifecycle.py``, and links to it (or copies)
named ``gpu_lifecycle_2.py``, ``gpu_lifecycle_3.py``. ``python -m gpu_fleet shards`` makes them.

Which file has a cluster depends on the names alone (rendezvous hashing: the file whose hash with the cluster's name is
highest), so it is the same in every process, and of N clusters one more file moves about N / files.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from pathlib import Path


def shard_of(name: str, stems: Iterable[str]) -> str:
    """The file, of these stems, that has a cluster."""
    return max(stems, key=lambda stem: hashlib.sha256(f"{stem}/{name}".encode("utf-8", "surrogateescape")).digest())


def stems_of(family: str, folder: Path) -> list[str]:
    """The stems of a family's DAG files in a folder, sorted."""
    named = re.compile(rf"{re.escape(family)}(_[1-9][0-9]*)?")
    return sorted(path.stem for path in folder.glob(f"{family}*.py") if named.fullmatch(path.stem))


def clusters_of(family: str, file: str) -> Callable[[str], bool]:
    """Whether a DAG file has a cluster; without a file, or with one that stands alone, it has all."""
    if not file:
        return lambda name: True  # noqa: ARG005
    path = Path(file)
    stems = stems_of(family, path.parent)
    if len(stems) < 2 or path.stem not in stems:
        return lambda name: True  # noqa: ARG005
    return lambda name: shard_of(name, stems) == path.stem
