from __future__ import annotations

import os
import subprocess
import sys

from tests.unit.core.specs import REPOSITORY

_PROGRAM = """
from gpu_fleet.core.aws import costs
from gpu_fleet.core.catalogue import prices, types
assert types._document.cache_info().currsize == 0, "read at the import"
from gpu_fleet.hooks.files.clusters import load_cluster
load_cluster("demo")
assert types._document.cache_info().misses == 1, "read more than once"
assert prices._regions.cache_info().currsize == 0, "prices are read where nothing has to be priced"
"""


def test_a_dag_file_reads_the_types_once_and_no_prices() -> None:
    environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY / 'plugins'}:{REPOSITORY}"}
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
