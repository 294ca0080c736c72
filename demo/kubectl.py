"""kubectl against the sandbox's cluster, as its administrator: what a user of the cluster would do and see."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any


class Kubectl:
    """
    :param kubeconfig: the administrator's kubeconfig.
    :param home: private HOME, for the discovery cache.
    """

    def __init__(self, kubeconfig: str, home: Path) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self._env = {**os.environ, "KUBECONFIG": kubeconfig, "HOME": str(home)}
        self._binary = os.environ.get("KUBECTL_BIN", "kubectl")

    def run(self, *args: str, stdin: str | None = None, timeout: float = 60) -> str:
        """
        :raises RuntimeError: with kubectl's message if it fails.
        """
        done = subprocess.run(
            [self._binary, *args], input=stdin, env=self._env, capture_output=True, text=True, timeout=timeout
        )
        if done.returncode != 0:
            raise RuntimeError(f"kubectl {' '.join(args)}: {done.stderr.strip()}")
        return done.stdout

    def run_quietly(self, *args: str) -> str:
        """The same; an empty text if it fails."""
        try:
            return self.run(*args)
        except (RuntimeError, subprocess.TimeoutExpired):
            return ""

    def get(self, *args: str) -> list[dict[str, Any]]:
        """``kubectl get … -o json`` as a list of objects; an absent resource type or object is an empty list."""
        try:
            value = json.loads(self.run("get", *args, "-o", "json"))
        except RuntimeError as error:
            if "not found" in str(error).lower() or "doesn't have a resource type" in str(error):
                return []
            raise
        items: list[dict[str, Any]] = value.get("items", [value])
        return items

    def apply(self, *manifests: dict[str, Any]) -> None:
        self.run("apply", "-f", "-", stdin="\n---\n".join(json.dumps(manifest) for manifest in manifests))
