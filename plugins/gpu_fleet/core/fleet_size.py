"""How many DAG files a fleet needs, and which of them has which cluster.

Airflow ends the import of a DAG file after ``[core] dagbag_import_timeout`` (30 s) and the whole of its parsing, with
the serialising of its DAGs, after ``[dag_processor] dag_file_processor_timeout`` (50 s; airflow-core 3.3.2
``config_templates/config.yml``, ``dag_processing/manager.py``). A file that takes longer gives no DAG at all, and the
DAGs that it gave before become stale, the runs under way with them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from math import ceil

#: Seconds that the largest family's DAG of a cluster takes to be built and serialised, without pools and for each pool.
#: Measured with ``bench/parse.py --files 1`` for 500 clusters of two pools (112 s) and one cluster of 100 pools (6 s),
#: on a slow and busy machine: an ordinary one has time to spare.
SECONDS_PER_CLUSTER, SECONDS_PER_POOL = 0.11, 0.06
#: Airflow's default for the whole of a file, in seconds, and the share of it from which on a fleet is near the limit.
FILE_LIMIT_S, NEAR = 50.0, 0.5


def shard_of(name: str, stems: Iterable[str]) -> str:
    """The stem of the file that has a cluster.

    Rendezvous hashing, the file whose hash with the cluster's name is highest: it depends on the names alone, so every
    process finds the same, and one more file moves clusters to itself and nowhere else.
    """
    return max(stems, key=lambda stem: hashlib.sha256(f"{stem}/{name}".encode("utf-8", "surrogateescape")).digest())


def file_seconds(pools: Sequence[int], files: int) -> float:
    """Estimated seconds for one of a family's DAG files, all sharing the clusters evenly.

    :param pools: the number of pools of each cluster.
    :param files: how many files the family has.
    """
    return (len(pools) * SECONDS_PER_CLUSTER + sum(pools) * SECONDS_PER_POOL) / files


def files_needed(pools: Sequence[int]) -> int:
    """The fewest files with which none is near the limit."""
    return max(1, ceil(file_seconds(pools, 1) / (FILE_LIMIT_S * NEAR)))


def size_note(pools: Sequence[int], files: int) -> str | None:
    """A sentence with the remedy if a fleet of this size is near the limit; else ``None``."""
    seconds = file_seconds(pools, files)
    if seconds < FILE_LIMIT_S * NEAR:
        return None
    shared = "one file" if files == 1 else f"{files} files"
    return (
        f"{len(pools)} clusters with {sum(pools)} pools in {shared} per family take up to {seconds:.0f} s per file, "
        "and Airflow drops a file that takes longer than [dag_processor] dag_file_processor_timeout "
        f"({FILE_LIMIT_S:.0f} s by default); share them among more files: "
        f"python -m gpu_fleet shards {files_needed(pools)}"
    )
