"""What a stack leaves in ``stack.json``, so that a later process finds it, stops it, and knows what it has borrowed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from demo.processes import alive, started, stop_pid_group

FILE = "stack.json"


def save(build_dir: Path, airflow_url: str, pids: Mapping[str, int], kubeconfig: Path | None) -> None:
    """Write the file, readable by its owner alone.

    :param pids: ``airflow`` and ``sandbox`` to the process that leads its group.
    :param kubeconfig: of the borrowed API server, if there is one.
    """
    content: dict[str, Any] = {"airflow_url": airflow_url}
    if kubeconfig is not None:
        content["kubeconfig"] = str(kubeconfig)
    for name, pid in pids.items():
        content |= {f"{name}_pid": pid, f"{name}_started": started(pid)}
    with os.fdopen(os.open(build_dir / FILE, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
        json.dump(content, out)


def forget(build_dir: Path) -> None:
    (build_dir / FILE).unlink(missing_ok=True)


def saved_pids(build_dir: Path) -> list[int]:
    """The processes of ``stack.json`` that are alive and still the same.

    The file may be older than the machine's last start; its numbers may then belong to other processes.
    """
    try:
        content = json.loads((build_dir / FILE).read_text())
    except (OSError, ValueError):
        return []
    if not isinstance(content, dict):
        return []
    pids = {content.get(f"{name}_pid"): content.get(f"{name}_started") for name in ("airflow", "sandbox")}
    return alive([pid for pid, then in pids.items() if isinstance(pid, int) and then and started(pid) == then])


def saved_kubeconfig(build_dir: Path) -> Path | None:
    """The kubeconfig of the API server that the saved stack has borrowed, if it has."""
    try:
        content = json.loads((build_dir / FILE).read_text())
    except (OSError, ValueError):
        return None
    path = content.get("kubeconfig") if isinstance(content, dict) else None
    return Path(path) if isinstance(path, str) else None


def stop_saved(build_dir: Path) -> bool:
    """Stop a stack that an earlier process left running (``make down``). Returns whether there was one."""
    pids = saved_pids(build_dir)
    for pid in pids:
        stop_pid_group(pid)
    forget(build_dir)
    return bool(pids)
