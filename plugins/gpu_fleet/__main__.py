"""Command line: ``python -m gpu_fleet validate [DIR]`` checks cluster files, ``… schema`` prints their JSON schema,
``… lock`` writes the digests of their charts to ``charts.lock.yaml``, ``… shards N`` divides a large fleet among N DAG
files per family, ``… prices REGION`` prints a region's price list, ``… capacity-history CLUSTER`` prints how long each
stage of the coming of the cluster's nodes took.

Exit codes: 0 success, 1 a cluster file has problems, or nothing is recorded of the cluster, 2 wrong arguments, or the
folder or Airflow's database cannot be read.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from gpu_fleet.core.aws.costs import unknown_types
from gpu_fleet.core.capacity.headroom import cost_sentences
from gpu_fleet.core.catalogue import catalogue_date, dated_prices, priced_regions
from gpu_fleet.core.errors import GpuFleetError, SpecError
from gpu_fleet.core.fleet_size import size_note
from gpu_fleet.core.spec import ClusterSpec, SpecErrors, physical_gpus
from gpu_fleet.core.spec.notes import notes_of
from gpu_fleet.core.spec.schema import schema_text
from gpu_fleet.core.trust import beyond
from gpu_fleet.hooks.files.clusters import CLUSTERS_DIR_VARIABLE, clusters_dir, load_fleet
from gpu_fleet.hooks.files.dag_files import FAMILIES, dags_dir, make_shards, stems_of
from gpu_fleet.hooks.files.prices import known_prices, load_prices
from gpu_fleet.hooks.settings import trust


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m gpu_fleet", description="Checks the fleet's cluster files.")
    commands = parser.add_subparsers(dest="command", required=True)
    validate = commands.add_parser("validate", help="check every cluster file of a folder")
    validate.add_argument(
        "folder",
        nargs="?",
        type=Path,
        help=f"folder of cluster files (default: ${CLUSTERS_DIR_VARIABLE}, else include/clusters)",
    )
    validate.add_argument(
        "--previous",
        type=Path,
        metavar="DIR",
        help="the folder before the change: a cluster file may be removed from it only after state: absent",
    )
    lock = commands.add_parser(
        "lock", help="record the digest of each chart archive, so that no other archive is installed"
    )
    lock.add_argument(
        "folder",
        nargs="?",
        type=Path,
        help=f"folder of cluster files (default: ${CLUSTERS_DIR_VARIABLE}, else include/clusters)",
    )
    lock.add_argument("--check", action="store_true", help="write nothing; exit 1 if the lock file is not up to date")
    shards = commands.add_parser("shards", help="divide the clusters among this many DAG files per family")
    shards.add_argument("files", type=int, help="1 puts everything into one file again")
    shards.add_argument("--dags", type=Path, metavar="DIR", help="folder of the DAG files (default: beside include)")
    prices = commands.add_parser(
        "prices", help="print the price list of a region, for include/prices: pools are ranked by it"
    )
    prices.add_argument("region", help="an AWS region, for example eu-west-1")
    prices.add_argument("--output", type=Path, metavar="FILE", help="write it to this file instead")
    schema = commands.add_parser("schema", help="print the JSON schema of cluster files, for editors")
    schema.add_argument("--output", type=Path, metavar="FILE", help="write it to this file instead")
    history = commands.add_parser(
        "capacity-history", help="print how long each stage took until the nodes of a cluster were proven"
    )
    history.add_argument("cluster", help="name of the cluster's spec; Airflow's configuration names the database")
    history.add_argument("--json", action="store_true", help="print all recorded nodes, as JSON")
    return parser


def problems_of_fleet(fleet: dict[str, ClusterSpec | SpecError]) -> Iterator[tuple[str, SpecError]]:
    """``(cluster, problem)`` for every problem of every file."""
    for name, spec in fleet.items():
        if isinstance(spec, SpecErrors):
            yield from ((name, problem) for problem in spec.problems)
        elif isinstance(spec, SpecError):
            yield name, spec


def vanished(
    previous: dict[str, ClusterSpec | SpecError], now: dict[str, ClusterSpec | SpecError]
) -> Iterator[tuple[str, SpecError]]:
    """Clusters whose file is gone although it did not say ``state: absent``: nothing would tear them down."""
    for name, spec in previous.items():
        if name in now or (isinstance(spec, ClusterSpec) and spec.state == "absent"):
            continue
        yield (
            name,
            SpecError(
                "the file has vanished, but the cluster's capacity has not been torn down",
                field="state",
                remedy=f"restore it with state: absent, let gpu_teardown.{name} succeed, then delete the file",
            ),
        )


def remarks(fleet: dict[str, ClusterSpec | SpecError]) -> Iterator[tuple[str, str]]:
    """``(cluster, sentence)`` for what is valid but has consequences to know."""
    for name, spec in fleet.items():
        if not isinstance(spec, ClusterSpec):
            continue
        types = [kind for pool in spec.node_pools for kind in pool.instance_types]
        for kind in unknown_types(known_prices(spec.region), types):
            yield (
                name,
                f"no list price of {kind} in {spec.region} in any file: unless AWS answers, sums leave its cost out",
            )
        yield from ((name, sentence) for sentence in cost_sentences(spec.node_pools, known_prices(spec.region)))
        for kind in sorted({kind for kind in types if physical_gpus(kind) is None}):
            yield (
                name,
                f"GPU count of {kind} is not in the catalogue of {catalogue_date()}; EC2 is asked when the run starts",
            )
        ranked = [pool for pool in spec.node_pools if pool.manage and pool.weight is None]
        if len(ranked) > 1 and not load_prices(spec.region).hourly and dated_prices(spec.region) is not None:
            yield (
                name,
                f"there is no include/prices/ec2-{spec.region}.yaml, so pools without a weight are ranked by their "
                f"GPUs, not by price; python -m gpu_fleet prices {spec.region} prints one",
            )
        yield from ((name, str(note)) for note in notes_of(spec))
        # Notes, because the limits belong to the deployment, whose environment may differ from that of this check.
        yield from ((name, f"{p.field}: {p.message}; {p.remedy}") for p in beyond(trust(), spec))


def _validate(folder: Path, previous: Path | None) -> int:
    fleet = load_fleet(folder)
    problems = list(problems_of_fleet(fleet))
    if previous is not None:
        problems += vanished(load_fleet(previous), fleet)
    if not fleet and not problems:
        print(f"{folder}: no cluster files (*.yaml, *.yml)", file=sys.stderr)
        return 2
    for name, sentence in remarks(fleet):
        print(f"note: {name}: {sentence}")
    pools = [len(spec.node_pools) for spec in fleet.values() if isinstance(spec, ClusterSpec)]
    if (note := size_note(pools, max(1, len(stems_of(FAMILIES[0], dags_dir()))))) is not None:
        print(f"note: the fleet: {note}")
    if not problems:
        print(f"{len(fleet)} cluster files are valid: {', '.join(fleet)}")
        return 0
    _print_table(
        [
            (name, problem.place, problem.field or "the file", _message(problem), problem.remedy)
            for name, problem in problems
        ]
    )
    files = len({name for name, _ in problems})
    print(f"\n{len(problems)} problems in {files} of the fleet's files ({len(fleet)} are there)", file=sys.stderr)
    return 1


def _lock(folder: Path, check: bool) -> int:
    """Pull every chart and write the lock file, or report how it differs. What is written refuses all other charts."""
    from gpu_fleet.core.releases.charts.locks import LockFile
    from gpu_fleet.hooks.helm.charts.locks import lock_path, read_locks, resolve_locks, write_locks

    fleet = load_fleet(folder)
    specs = [spec for spec in fleet.values() if isinstance(spec, ClusterSpec)]
    if len(specs) != len(fleet) or not specs:
        print("error: not every cluster file is valid: run python -m gpu_fleet validate", file=sys.stderr)
        return 2
    path = lock_path(folder)
    try:
        old = read_locks(path) or LockFile(())
    except SpecError as error:
        if check:
            raise
        print(f"{error}; writing a new one", file=sys.stderr)
        old = LockFile(())
    before, now = set(old.charts), set(resolve_locks(specs))
    for sign, entries in (("-", before - now), ("+", now - before)):
        for item in sorted(entries):
            print(f"{sign} {item.repository}/{item.name} {item.version} {item.digest}")
    if old.others:
        print("charts that are not in the file: installed now, refused with a new one")
    if before == now and not old.others:
        print(f"{path.name} is up to date: {len(now)} charts")
        return 0
    if check:
        print(f"{path.name} is not up to date", file=sys.stderr)
        return 1
    # An archive that is still the same keeps the note on where its digest was published.
    write_locks(path, LockFile((*(item for item in old.charts if item in now), *(now - before))))
    print(f"{path} written: {len(now)} charts")
    return 0


def _shards(folder: Path, files: int) -> int:
    if files < 1:
        raise SpecError(f"{files} is not a number of files", field="files", remedy="1 or more")
    for line in make_shards(folder, files):
        print(line)
    print(f"{folder}: {files} file(s) per family")
    return 0


def _prices(region: str) -> str:
    """A region's list prices as a file of ``include/prices``.

    :raises SpecError: the package has none.
    """
    found = dated_prices(region)
    if found is None:
        raise SpecError(
            f"the price file has no prices of {region}",
            field="region",
            remedy=f"one of {', '.join(priced_regions())}; or write the file by hand",
        )
    lines = "".join(f"  {name}: {usd!r}\n" for name, usd in sorted(found.hourly.items()))
    return (
        f'region: {region}\ncurrency: USD\ndate: "{found.date}"\nsource: {found.source}\n\n'
        "# USD per instance and hour, on-demand, Linux. fixed: true above would put these before what AWS lists.\n"
        f"hourly:\n{lines}"
    )


def _message(problem: SpecError) -> str:
    """The problem's sentence without field and remedy, which have their own columns."""
    text = problem.message
    if problem.field:
        text = text.removeprefix(f"{problem.field}: ")
    return text.removesuffix(f" ({problem.remedy})") if problem.remedy else text


def _print_table(rows: Sequence[tuple[str, ...]]) -> None:
    head = ("cluster", "where", "field", "problem", "remedy")
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    for row in (head, tuple("-" * width for width in (*widths[:-1], len(head[-1]))), *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def main(arguments: Sequence[str] | None = None) -> int:
    """
    :returns: the exit code.
    """
    options = _parser().parse_args(arguments)
    try:
        if options.command in ("schema", "prices"):
            text = schema_text() if options.command == "schema" else _prices(options.region)
            if options.output is None:
                print(text, end="")
            else:
                options.output.write_text(text, encoding="utf-8")
            return 0
        if options.command == "shards":
            return _shards(options.dags or dags_dir(), options.files)
        if options.command == "capacity-history":
            from gpu_fleet.ui.capacity_history import capacity_history

            return capacity_history(options.cluster, as_json=options.json)
        if options.command == "lock":
            return _lock(options.folder or clusters_dir(), options.check)
        return _validate(options.folder or clusters_dir(), options.previous)
    except (GpuFleetError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
