"""Measures what the DAG files cost: parsing a fleet, parsing for one task, serialising.

A task's process is a fork of the scheduler's worker, which has imported what ``gpu_fleet.hooks.preload`` names; so one
task is measured that way, and in a cold interpreter as well, where the imports of third parties come first.

    python bench/parse.py [--clusters 50] [--pools 2] [--rounds 5]
    python bench/parse.py --clusters 500 --rounds 1 --files 1 8    one DAG file, as the DAG processor parses it

Each figure is the median CPU time, in seconds, of runs in new interpreters, so other work on the machine does not
count; the import of Airflow alone is shown beside it. With ``--files`` the largest file of the largest family, the
lifecycle, is measured for each number of files per family. Airflow compares its total with ``[dag_processor]
dag_file_processor_timeout``, 50 s by default, and the parsing alone with ``[core] dagbag_import_timeout``, 30 s.
"""

from __future__ import annotations

import argparse
import json
import os
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
    "dags": len(bag.dags), "tasks": sum(len(dag.tasks) for dag in bag.dags.values()),
}))
"""


def measure(clusters: Path, files: list[Path], context: str | None, *, preload: bool = False) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as home:
        env = {key: value for key, value in os.environ.items() if not key.startswith("AIRFLOW")}
        env |= {
            "AIRFLOW_HOME": home,
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
            # Airflow aborts the import of a file after 30 s by default; here it is measured to its end.
            "AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT": "0",
            "AIRFLOW__CORE__PLUGINS_FOLDER": str(ROOT / "plugins"),
            "PYTHONPATH": f"{ROOT / 'plugins'}:{ROOT}",
            "GPU_FLEET_CLUSTERS_DIR": str(clusters),
        }
        if context is not None:
            env |= {"_AIRFLOW_PARSING_CONTEXT_DAG_ID": context, "_AIRFLOW_PARSING_CONTEXT_TASK_ID": "run_verdict"}
        if preload:
            env["PRELOAD"] = "1"
        done = subprocess.run(
            [sys.executable, "-c", _MEASURE, str(ROOT / "dags"), *map(str, files)],
            env=env,
            capture_output=True,
            text=True,
            check=True,
        )
    value: dict[str, float] = json.loads(done.stdout.split("@@@", 1)[1])
    return value


def write_fleet(folder: Path, clusters: int, pools: int) -> None:
    """Cluster files like the demo's, with that many pools each: its own, and copies of the first."""
    value = yaml.safe_load((ROOT / "include" / "clusters" / "demo.yaml").read_text())
    first = value["nodePools"][0]
    extra = [{**first, "name": f"pool-{number:03d}"} for number in range(pools - len(value["nodePools"]))]
    value["nodePools"] = [*value["nodePools"], *extra][:pools]
    for number in range(clusters):
        name = f"cluster{number:03d}"
        text = yaml.safe_dump({**value, "name": name}, sort_keys=False).replace("demo-gpu", f"{name}-gpu")
        (folder / f"{name}.yaml").write_text(text)


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
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        clusters = Path(folder)
        write_fleet(clusters, args.clusters, args.pools)
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
