"""``python -m tools.reference`` writes the generated files; with ``--check`` it says which of them are not current.

Exit codes: 0 written, or current; 1 not current.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gpu_fleet.core.spec.schema import schema_text
from tools.reference import cluster_file, commands, dags, environment, operators, permissions
from tools.reference.markup import ROOT

#: Path in the repository -> its text.
PAGES: dict[str, Callable[[], str]] = {
    "docs/reference/cluster-file.md": cluster_file.document,
    "docs/reference/commands.md": commands.document,
    "docs/reference/dags.md": dags.document,
    "docs/reference/environment.md": environment.document,
    "docs/reference/operators.md": operators.document,
    "docs/reference/permissions.md": permissions.document,
    "include/schema/cluster.schema.json": schema_text,
}


@contextmanager
def _airflow_home() -> Iterator[None]:
    """A folder of its own for Airflow, and the repository's cluster files: no setting of the user's counts."""
    with tempfile.TemporaryDirectory() as home:
        os.environ["AIRFLOW_HOME"] = home
        os.environ["GPU_FLEET_CLUSTERS_DIR"] = str(ROOT / "include" / "clusters")
        yield


def main(arguments: list[str]) -> int:
    stale = []
    with _airflow_home():
        pages = {ROOT / name: document() for name, document in PAGES.items()}
    for path, text in pages.items():
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        if "--check" in arguments:
            stale.append(path)
        else:
            path.write_text(text, encoding="utf-8")
            print(f"{path.relative_to(ROOT)} written")
    for path in stale:
        print(f"{path.relative_to(ROOT)} is not current; run `make docs`", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
