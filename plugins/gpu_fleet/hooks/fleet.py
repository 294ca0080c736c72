"""Reads the fleet from a folder of YAML files, one cluster each. DAG files use it while they are parsed: no network.

Nothing here raises for one bad file except :func:`load_cluster`, which is asked for exactly that file: a broken cluster
file must break its own DAGs only.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from gpu_fleet.core.errors import SpecError
from gpu_fleet.core.spec import ClusterSpec, SpecErrors, parse_cluster
from gpu_fleet.hooks.templates import include_dir

#: Overrides the folder of cluster files.
CLUSTERS_DIR_VARIABLE = "GPU_FLEET_CLUSTERS_DIR"
SUFFIXES = (".yaml", ".yml")
#: A cluster file is a page or two; far beyond that it is not one, and parsing it would stall the DAG processor.
MAX_BYTES = 1_000_000

_SafeLoader: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _StrictLoader(_SafeLoader):  # type: ignore[misc]
    """YAML's safe loader, which also refuses a key given twice (YAML itself would silently keep the last)."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue  # refused below: a mapping or a list is no key
            key = key_node.value
            if key in seen:
                mark = key_node.start_mark
                raise SpecError(
                    f"key {key!r} stands twice in one mapping (line {mark.line + 1})",
                    field="the file",
                    remedy="remove one",
                )
            seen.add(key)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return mapping


def clusters_dir() -> Path:
    """The folder of cluster files: ``GPU_FLEET_CLUSTERS_DIR``, else ``include/clusters``."""
    override = os.environ.get(CLUSTERS_DIR_VARIABLE, "")
    return Path(override) if override else include_dir() / "clusters"


def _files(folder: Path) -> dict[str, list[Path]]:
    """Stem -> files of that stem; more than one is a duplicate."""
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


def read_yaml(path: Path) -> Any:
    """The one document in a YAML file.

    :raises SpecError: unreadable, not UTF-8, too large, not YAML, or several documents; names the line.
    """
    try:
        raw = path.read_bytes()
        if len(raw) > MAX_BYTES:
            raise SpecError(f"{path.name} has {len(raw)} bytes", remedy="a cluster file has at most 1 MB")
        text = raw.decode("utf-8")
        return yaml.load(text, Loader=_StrictLoader)  # noqa: S506  (a subclass of the safe loader)
    except SpecError as error:
        raise SpecErrors([error], where=path.name) from error
    except OSError as error:
        raise SpecErrors(
            [_problem(f"cannot be read: {error.strerror or error}", "check its mode")], where=path.name
        ) from error
    except UnicodeDecodeError as error:
        raise SpecErrors(
            [_problem(f"is not UTF-8 (byte {error.start})", "save it as UTF-8")], where=path.name
        ) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        what = getattr(error, "problem", None) or str(error).splitlines()[0]
        place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise SpecErrors([_problem(f"is not valid YAML: {what}{place}", "correct it")], where=path.name) from error


def _problem(message: str, remedy: str) -> SpecError:
    return SpecError(message, field="the file", remedy=remedy)


def _load_files(name: str, paths: Iterable[Path]) -> ClusterSpec:
    paths = list(paths)
    if len(paths) > 1:
        both = " and ".join(path.name for path in paths)
        raise SpecErrors([_problem(f"{both} describe the same cluster", "keep one of them")], where=name)
    path = paths[0]
    value = read_yaml(path)
    if value is None:
        raise SpecErrors(
            [_problem("is empty", "write a cluster spec, see include/clusters/demo.yaml")], where=path.name
        )
    if not isinstance(value, dict):
        raise SpecErrors(
            [_problem(f"holds a {type(value).__name__}, not a mapping", "write a cluster spec")], where=path.name
        )
    spec = parse_cluster(value, where=path.name)
    if spec.name != path.stem:
        raise SpecErrors(
            [
                SpecError(
                    f"{spec.name!r} is not the file's name {path.stem!r}, which the DAG ids are made of",
                    field="name",
                    remedy=f"write name: {path.stem} or rename the file",
                )
            ],
            where=path.name,
        )
    return spec


def load_cluster(name: str, folder: Path | str | None = None) -> ClusterSpec:
    """One cluster's spec.

    :raises SpecError: with every problem of the file, if there is no such file, or if another one describes the same
        cluster (as :func:`load_fleet` has it, so that a task sees the Dag that was stored).
    """
    where = Path(folder) if folder else clusters_dir()
    paths = [path for suffix in SUFFIXES if (path := where / f"{name}{suffix}").exists()]
    if not paths:
        raise SpecError(
            f"there is no cluster file {where / name}.yaml", field="cluster", remedy="add it, or correct the name"
        )
    spec = _load_files(name, paths)
    others = _also_described_by(spec, where)
    if others:
        raise _described_twice(spec, others)
    return spec


def _place(spec: ClusterSpec) -> tuple[str, str, str]:
    return spec.aws.connection, spec.aws.region, spec.cluster.name


def _also_described_by(spec: ClusterSpec, folder: Path) -> list[str]:
    """Other files about the same cluster. Only files with its name in them are parsed: this runs at each task start."""
    found = []
    mentioned = re.compile(rb"(?<![\w-])" + re.escape(spec.cluster.name.encode()) + rb"(?![\w-])")
    for name, paths in sorted(_files(folder).items()):
        if name == spec.name:
            continue
        try:
            if any(mentioned.search(path.read_bytes()) for path in paths) and _place(
                _load_files(name, paths)
            ) == _place(spec):
                found.append(name)
        except (OSError, SpecError):
            continue  # that file's own Dags say what is wrong with it
    return found


def _described_twice(spec: ClusterSpec, others: Iterable[str]) -> SpecErrors:
    problem = SpecError(
        f"EKS cluster {spec.cluster.name} in {spec.aws.region} is also described by {', '.join(others)}",
        field="cluster.name",
        remedy="keep one file per cluster",
    )
    return SpecErrors([problem], where=spec.name)


def load_fleet(folder: Path | str | None = None) -> dict[str, ClusterSpec | SpecError]:
    """Every cluster of the fleet, or what is wrong with its file; sorted by name.

    Two files that describe the same cluster of the same AWS connection and region are both refused: two lifecycles
    would fight over it.

    :raises SpecError: only if the folder itself cannot be read.
    """
    fleet: dict[str, ClusterSpec | SpecError] = {}
    for name, paths in sorted(_files(Path(folder) if folder else clusters_dir()).items()):
        try:
            fleet[name] = _load_files(name, paths)
        except SpecError as error:
            fleet[name] = error
    places: dict[tuple[str, str, str], list[ClusterSpec]] = {}
    for spec in fleet.values():
        if isinstance(spec, ClusterSpec):
            places.setdefault(_place(spec), []).append(spec)
    for twins in places.values():
        for spec in twins:
            others = [other.name for other in twins if other is not spec]
            if others:
                fleet[spec.name] = _described_twice(spec, others)
    return fleet
