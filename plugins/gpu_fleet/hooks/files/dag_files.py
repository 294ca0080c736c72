"""A large fleet in several DAG files: each of them has a share of the clusters.

Airflow parses files in parallel (``[dag_processor] parsing_processes``) and stops one that takes too long
(:mod:`gpu_fleet.core.fleet_size`). So a family may have several files: ``gpu_lifecycle.py``, and links to it named
``gpu_lifecycle_2.py``, ``gpu_lifecycle_3.py``, …, without gaps. ``python -m gpu_fleet shards`` creates them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from gpu_fleet.core.errors import SpecError
from gpu_fleet.core.fleet_size import shard_of
from gpu_fleet.hooks.files.templates import include_dir

#: The families, by the names of their files.
FAMILIES = (
    "gpu_admit",
    "gpu_drain",
    "gpu_headroom",
    "gpu_lifecycle",
    "gpu_restore",
    "gpu_revalidate",
    "gpu_spot_drain",
    "gpu_teardown",
)


def dags_dir() -> Path:
    """The folder ``dags`` beside ``include``, where Airflow's usual project layout has it."""
    return include_dir().parent / "dags"


def stems_of(family: str, folder: Path) -> list[str]:
    """The stems of a family's DAG files in a folder, sorted."""
    named = re.compile(rf"{re.escape(family)}(_[1-9][0-9]*)?")
    return sorted(path.stem for path in folder.glob(f"{family}*.py") if named.fullmatch(path.stem))


def clusters_of(family: str, file: str) -> Callable[[str], bool]:
    """Whether a DAG file contains a cluster; without a file, or if a family has only one, it contains all."""
    path = Path(file)
    stems = stems_of(family, path.parent) if file else []
    if len(stems) < 2 or path.stem not in stems:
        return lambda name: True  # noqa: ARG005
    return lambda name: shard_of(name, stems) == path.stem


def make_shards(folder: Path, files: int) -> list[str]:
    """Give each family that many files: its own and links to it. Links beyond that number are removed.

    :param folder: the DAG files' folder.
    :param files: at least 1.
    :returns: the names of the files that were created, with ``+``, and removed, with ``-``.
    :raises SpecError: the folder lacks a family's file, or has something else under a name that is needed.
    """
    done = []
    for family in FAMILIES:
        own = f"{family}.py"
        if not (folder / own).is_file():
            raise SpecError(f"{folder} has no {own}", field="--dags", remedy="name the folder of the DAG files")
        wanted = {f"{family}_{number}.py" for number in range(2, files + 1)}
        there = {f"{stem}.py" for stem in stems_of(family, folder)} - {own}
        for name in sorted(there | wanted):
            path = folder / name
            if path.is_symlink():
                if name not in wanted:
                    path.unlink()
                    done.append(f"- {name}")
            elif path.exists():
                raise SpecError(f"{path} is not a link to {own}", field="--dags", remedy="move it away")
            else:
                path.symlink_to(own)
                done.append(f"+ {name}")
    return done
