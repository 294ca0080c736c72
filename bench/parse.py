"""Measures what the DAG files cost: parsing a fleet, parsing for one task, serialising.

A task's process is a fork of the scheduler's worker, which has imported what ``gpu_fleet.hooks.preload`` names; so one
task is measured that way, and in a cold interpreter as well, where the imports of third parties come first.

    python bench/parse.py [--clusters 50] [--pools 2] [--rounds 5]
    python bench/parse.py --clusters 500 --rounds 1 --files 1 8    one DAG file, as the DAG processor parses it
    python bench/parse.py --against ../before --rounds 9           the same in another checkout, in turn with this one

Each figure is the median CPU time, in seconds, of runs in new interpreters, so other work on the machine does not
count; the import of Airflow alone is shown beside it. With ``--files`` the largest file of the largest family, the
lifecycle, is measured for each number of files per family. Airflow compares its total with ``[dag_processor]
dag_file_processor_timeout``, 50 s by default, and the parsing alone with ``[core] dagbag_import_timeout``, 30 s.

With ``--against`` each round measures the one checkout and then the other, so that both see the same machine, and the
process as a whole is compared, too (user and system time, with the start of Python and the import of Airflow).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]

_MEASURE = """
import json, os, sys, time
began = time.process_time()
from airflow.dag_processing.dagbag import DagBag
from airflow.serialization.serialized_objects import DagSerialization
from airflow.sdk import DAG
from airflow.providers.standard.operators.hitl import ApprovalOperator
if "PRELOAD" in os.environ:
    from gpu_fleet.hooks import preload
    preload.preload(preload.MODULES["scheduler"])
imported = time.process_time()
bag = DagBag(dag_folder=sys.argv[1], collect_dags=False)
for path in sys.argv[2:]:
    bag.process_file(path)
parsed = time.process_time()
assert not bag.import_errors, bag.import_errors
for dag in bag.dags.values():
    DagSerialization.to_dict(dag)
serialised = time.process_time()
print("@@@" + json.dumps({
    "import_airflow_s": imported - began, "parse_s": parsed - imported, "serialise_s": serialised - parsed,
    "modules": sum(name.partition(".")[0] == "gpu_fleet" for name in sys.modules),
    "dags": len(bag.dags), "tasks": sum(len(dag.tasks) for dag in bag.dags.values()),
}))
"""


def measure(
    clusters: Path, files: list[Path], context: str | None, *, preload: bool = False, root: Path = ROOT
) -> dict[str, float]:
    """One parse in a new interpreter.

    :param context: the DAG id that Airflow gives as parsing context when it starts a task; ``None``: a DAG processor.
    :param preload: import first what a scheduler's worker has imported before it forks a task.
    :param root: the checkout whose package is measured.
    """
    with tempfile.TemporaryDirectory() as home:
        env = {key: value for key, value in os.environ.items() if not key.startswith("AIRFLOW")}
        env |= {
            "AIRFLOW_HOME": home,
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__DAGS_FOLDER": str(root / "dags"),
            # Airflow aborts the import of a file after 30 s by default; here it is measured to its end.
            "AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT": "0",
            "AIRFLOW__CORE__PLUGINS_FOLDER": str(root / "plugins"),
            "PYTHONPATH": f"{root / 'plugins'}:{root}",
            "GPU_FLEET_CLUSTERS_DIR": str(clusters),
        }
        if context is not None:
            env |= {"_AIRFLOW_PARSING_CONTEXT_DAG_ID": context, "_AIRFLOW_PARSING_CONTEXT_TASK_ID": "run_verdict"}
        if preload:
            env["PRELOAD"] = "1"
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "-c", _MEASURE, str(root / "dags"), *map(str, files)],
            env=env,
            capture_output=True,
            text=True,
            check=True,
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    value: dict[str, float] = json.loads(done.stdout.split("@@@", 1)[1])
    return {**value, "process_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime}


def write_fleet(folder: Path, clusters: int, pools: int, root: Path = ROOT) -> None:
    """Cluster files like the demo's, with that many pools each: its own, and copies of the first."""
    value = yaml.safe_load((root / "include" / "clusters" / "demo.yaml").read_text())
    first = value["nodePools"][0]
    extra = [{**first, "name": f"pool-{number:03d}"} for number in range(pools - len(value["nodePools"]))]
    value["nodePools"] = [*value["nodePools"], *extra][:pools]
    for number in range(clusters):
        name = f"cluster{number:03d}"
        text = yaml.safe_dump({**value, "name": name}, sort_keys=False).replace("demo-gpu", f"{name}-gpu")
        (folder / f"{name}.yaml").write_text(text)


def compare(clusters: Path, other: Path, rounds: int) -> None:
    """This checkout and another one in turn: a DAG processor's parse, and a task's start."""
    one = "gpu_lifecycle.cluster000"
    cases: tuple[tuple[str, str, str | None, bool], ...] = (
        ("DAG processor, the files of both", "*.py", None, False),
        ("DAG processor, the lifecycle's file", "gpu_lifecycle.py", None, False),
        ("task start, in a worker's fork", "gpu_lifecycle.py", one, True),
        ("task start, in a cold interpreter", "gpu_lifecycle.py", one, False),
    )
    names = sorted(
        {path.name for path in (ROOT / "dags").glob("*.py")} & {path.name for path in (other / "dags").glob("*.py")}
    )
    print(f"medians of {rounds}, ms of CPU: {other} -> {ROOT}; modules of gpu_fleet")
    for title, pattern, context, preload in cases:
        found: dict[Path, list[dict[str, float]]] = {other: [], ROOT: []}
        for number in range(rounds):
            for root in (other, ROOT) if number % 2 else (ROOT, other):
                files = [root / "dags" / name for name in names if Path(name).match(pattern)]
                found[root].append(measure(clusters, files, context, preload=preload, root=root))
        medians = {
            root: {key: statistics.median(each[key] for each in many) for key in many[0]}
            for root, many in found.items()
        }
        # A worker's fork pays neither for Python's start nor for what the scheduler has preloaded.
        whole = () if preload else (("serialise_s", 1000), ("process_s", 1000))
        for name, unit in (("parse_s", 1000), *whole, ("modules", 1), ("tasks", 1)):
            was, now = (unit * medians[root][name] for root in (other, ROOT))
            print(
                f"{title:36} {name.removesuffix('_s'):9} {was:7.0f} -> {now:7.0f}  {100 * (now / was - 1):+5.1f} %",
                flush=True,
            )


def print_largest(clusters: Path, count: int) -> None:
    """The largest family's file with the most clusters, when it has ``count`` files."""
    from gpu_fleet.hooks.files.dag_files import clusters_of

    own = ROOT / "dags" / "gpu_lifecycle.py"
    names = [path.stem for path in clusters.glob("*.yaml")]
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / own.name]
        files[0].write_text(own.read_text())
        for number in range(2, count + 1):
            files.append(Path(folder) / f"{own.stem}_{number}.py")
            files[-1].symlink_to(own.name)
        found = measure(clusters, [max(files, key=lambda f: sum(map(clusters_of(own.stem, str(f)), names)))], None)
    print(
        f"{own.stem} in {count} file(s): the largest has {found['dags']:.0f} DAGs, {found['tasks']:.0f} tasks; "
        f"parse {found['parse_s']:.1f} s, serialise {found['serialise_s']:.1f} s, "
        f"together {found['parse_s'] + found['serialise_s']:.1f} s",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clusters", type=int, default=50)
    parser.add_argument("--pools", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--files", type=int, nargs="+", metavar="N", help="files per family; measure the largest")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="another checkout to compare this one with")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        clusters = Path(folder)
        # An older checkout may refuse a field of the newer file; the newer one takes the older file.
        write_fleet(clusters, args.clusters, args.pools, args.against or ROOT)
        if args.against:
            compare(clusters, args.against.resolve(), args.rounds)
            return
        if args.files:
            for count in args.files:
                print_largest(clusters, count)
            return
        files = sorted((ROOT / "dags").glob("*.py"))
        whole = [measure(clusters, files, None) for _ in range(args.rounds)]
        lifecycle = [ROOT / "dags" / "gpu_lifecycle.py"]
        one = "gpu_lifecycle.cluster007"
        forked = [measure(clusters, lifecycle, one, preload=True) for _ in range(args.rounds)]
        cold = [measure(clusters, lifecycle, one) for _ in range(args.rounds)]
    for title, rounds in (
        (f"{args.clusters} clusters", whole),
        ("one task, in a worker's fork", forked),
        ("one task, in a cold interpreter", cold),
    ):
        median = {key: statistics.median(each[key] for each in rounds) for key in rounds[0]}
        print(
            f"{title}: {median['dags']:.0f} DAGs, {median['tasks']:.0f} tasks; "
            f"import Airflow {median['import_airflow_s']:.2f} s, parse {median['parse_s']:.3f} s, "
            f"serialise {median['serialise_s']:.3f} s (medians of {len(rounds)})"
        )


if __name__ == "__main__":
    main()
