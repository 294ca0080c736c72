"""Reads the fleet from a folder of YAML files, one cluster each. DAG files use it while they are parsed: no network.

A broken cluster file must break only its own DAGs, so no function raises for one bad file except :func:`load_cluster`,
which is called for exactly that file.
"""

from __future__ import annotations

import logging
import os
import re
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from gpu_fleet.core.errors import SpecError
from gpu_fleet.core.spec import ClusterSpec, SpecErrors, parse_cluster
from gpu_fleet.core.spec.yaml.document import MAX_BYTES, Document, read_document
from gpu_fleet.hooks.files.templates import include_dir

log = logging.getLogger(__name__)

#: Overrides the folder of cluster files.
CLUSTERS_DIR_VARIABLE = "GPU_FLEET_CLUSTERS_DIR"
SUFFIXES = (".yaml", ".yml")


def clusters_dir() -> Path:
    """The folder of cluster files: ``GPU_FLEET_CLUSTERS_DIR``, else ``include/clusters``."""
    override = os.environ.get(CLUSTERS_DIR_VARIABLE, "")
    return Path(override) if override else include_dir() / "clusters"


def _files(folder: Path) -> dict[str, list[Path]]:
    """Stem -> files with that stem; more than one is an error."""
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise SpecError(
            f"the folder of cluster files {folder} cannot be read: {error.strerror or error}",
            remedy=f"create it or point {CLUSTERS_DIR_VARIABLE} to another",
        ) from error
    found: dict[str, list[Path]] = {}
    for path in entries:
        if path.suffix in SUFFIXES and not path.name.startswith("."):
            found.setdefault(path.stem, []).append(path)
    return found


def cluster_names(folder: Path | str | None = None) -> list[str]:
    """Names of all clusters, from the file names alone: the files are not opened.

    :raises SpecError: if the folder cannot be read.
    """
    return sorted(_files(Path(folder) if folder else clusters_dir()))


def _bytes(path: Path) -> bytes:
    """The bytes of a cluster file, at most one more than the limit.

    :raises OSError: if it cannot be read, or is not a regular file: reading a pipe could block without a limit.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(f"{shown(path)} is not a regular file")
    with path.open("rb") as file:
        return file.read(MAX_BYTES + 1)


def shown(path: Path | str) -> str:
    """A file name in a form that can be stored and printed, whatever bytes it has."""
    return os.fsencode(Path(path).name).decode("utf-8", "backslashreplace")


def read_cluster_file(path: Path) -> Document:
    """The one document in a cluster file.

    :raises SpecErrors: unreadable, or not a document as :func:`read_document` takes it; names the line.
    """
    try:
        return read_document(_bytes(path))
    except SpecError as error:
        raise SpecErrors([error], where=shown(path)) from error
    except OSError as error:
        raise SpecErrors(
            [_problem(f"cannot be read: {error.strerror or error}", "check its mode")], where=shown(path)
        ) from error


def read_yaml(path: Path) -> Any:
    """The value in a YAML file, read as cluster files are.

    :raises SpecErrors: see :func:`read_cluster_file`.
    """
    return read_cluster_file(path).value


def _problem(message: str, remedy: str) -> SpecError:
    return SpecError(message, field="the file", remedy=remedy)


def _load_files(name: str, paths: Iterable[Path]) -> ClusterSpec:
    paths = list(paths)
    if len(paths) > 1:
        both = " and ".join(shown(path) for path in paths)
        raise SpecErrors([_problem(f"{both} describe the same cluster", "keep one of them")], where=shown(name))
    path = paths[0]
    document = read_cluster_file(path)
    value = document.value
    if value is None:
        raise SpecErrors(
            [_problem("is empty", "write a cluster spec, see include/clusters/demo.yaml")], where=shown(path)
        )
    if not isinstance(value, dict):
        raise SpecErrors(
            [_problem(f"holds a {type(value).__name__}, not a mapping", "write a cluster spec")], where=shown(path)
        )
    spec = parse_cluster(value, where=shown(path), place=document.place)
    if spec.name != path.stem:
        raise SpecErrors(
            [
                SpecError(
                    f"{spec.name!r} is not the file's name {path.stem!r}, which the DAG ids are made of",
                    field="name",
                    remedy=f"write name: {path.stem} or rename the file",
                    place=document.place("name"),
                )
            ],
            where=shown(path),
        )
    return spec


def _judged(name: str, paths: Iterable[Path]) -> ClusterSpec | SpecError:
    """The spec, or what is wrong with the file; an error of any kind affects only this cluster."""
    try:
        return _load_files(name, paths)
    except SpecError as error:
        return error
    except Exception as error:
        log.exception("the cluster file of %s cannot be judged", shown(name))
        return SpecErrors(
            [_problem(f"cannot be judged: {type(error).__name__}: {error}", "report it as an error of gpu-fleet")],
            where=shown(name),
        )


def load_cluster(name: str, folder: Path | str | None = None, *, alone: bool = False) -> ClusterSpec:
    """One cluster's spec.

    :param alone: do not check whether another file describes the same cluster: the DAG is built in any case, and its
        runs are refused when they begin.
    :raises SpecError: with every problem of the file, if there is no such file, or if another one describes the same
        cluster.
    """
    where = Path(folder) if folder else clusters_dir()
    paths = [path for suffix in SUFFIXES if (path := where / f"{name}{suffix}").exists()]
    if not paths:
        raise SpecError(
            f"there is no cluster file {where / name}.yaml", field="cluster", remedy="add it, or correct the name"
        )
    spec = _load_files(name, paths)
    if alone:
        return spec
    for key, problem in ((_place, _described_twice), (_queue, _read_twice)):
        others = _with_the_same(key, spec, where)
        if others:
            raise problem(spec, others)
    return spec


def _place(spec: ClusterSpec) -> tuple[str, str, str] | None:
    return spec.aws.connection, spec.aws.region, spec.cluster.name


def _queue(spec: ClusterSpec) -> tuple[str, str, str] | None:
    """The queue of interruptions; ``None`` if the file names none."""
    queue = spec.interruptions.queue
    return None if queue is None else (spec.aws.connection, spec.aws.region, queue)


_Key = Callable[[ClusterSpec], tuple[str, str, str] | None]


def _with_the_same(key: _Key, spec: ClusterSpec, folder: Path) -> list[str]:
    """Other files about the same cluster, or the same queue. Only files with its name in them are parsed."""
    mine = key(spec)
    if mine is None:
        return []
    found = []
    mentioned = re.compile(rb"(?<![\w-])" + re.escape(mine[-1].encode()) + rb"(?![\w-])")
    for name, paths in sorted(_files(folder).items()):
        if name == spec.name:
            continue
        try:
            if any(mentioned.search(_bytes(path)) for path in paths) and key(_load_files(name, paths)) == mine:
                found.append(name)
        except (OSError, SpecError):
            continue  # its own DAGs report what is wrong with it
    return found


def _described_twice(spec: ClusterSpec, others: Iterable[str]) -> SpecErrors:
    problem = SpecError(
        f"EKS cluster {spec.cluster.name} in {spec.aws.region} is also described by {', '.join(others)}",
        field="cluster.name",
        remedy="keep one file per cluster",
    )
    return SpecErrors([problem], where=spec.name)


def _read_twice(spec: ClusterSpec, others: Iterable[str]) -> SpecErrors:
    """A message goes to one reader: with two, each would miss some of its own interruptions."""
    problem = SpecError(
        f"queue {spec.interruptions.queue} in {spec.region} is also named by {', '.join(others)}",
        field="interruptions.queue",
        remedy="deploy include/cloudformation/interruptions.yaml once for each cluster",
    )
    return SpecErrors([problem], where=spec.name)


def load_each(
    folder: Path | str | None = None,
    wanted: Callable[[str], bool] = lambda name: True,  # noqa: ARG005
) -> dict[str, ClusterSpec | SpecError]:
    """Clusters of the fleet, each from its own file alone; sorted by name.

    :param wanted: whether a name is wanted; other files are not opened.
    :raises SpecError: only if the folder itself cannot be read.
    """
    files = sorted(_files(Path(folder) if folder else clusters_dir()).items())
    return {name: _judged(name, paths) for name, paths in files if wanted(name)}


def load_fleet(folder: Path | str | None = None) -> dict[str, ClusterSpec | SpecError]:
    """Every cluster of the fleet, or what is wrong with its file; sorted by name.

    Two files that describe the same cluster of the same AWS connection and region are both refused: two lifecycles
    would fight over it. So are two that read the same queue.

    :raises SpecError: only if the folder itself cannot be read.
    """
    fleet = load_each(folder)
    for key, problem in ((_place, _described_twice), (_queue, _read_twice)):
        same: dict[tuple[str, str, str], list[ClusterSpec]] = {}
        for spec in fleet.values():
            if isinstance(spec, ClusterSpec) and (shared := key(spec)) is not None:
                same.setdefault(shared, []).append(spec)
        for specs in same.values():
            for spec in specs if len(specs) > 1 else ():
                fleet[spec.name] = problem(spec, [other.name for other in specs if other is not spec])
    return fleet
