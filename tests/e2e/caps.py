"""A standing oracle beside every end-to-end test: never more instances of a pool than its cluster file allows.

It looks at EC2 itself, through the sandbox's account, and at the cluster files, never at what the package says.
Karpenter's own limit cannot be the oracle: it lets a burst run over (kubernetes-sigs/karpenter#2915).
"""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import yaml

if TYPE_CHECKING:
    from tests.e2e.fleet import Fleet

INTERVAL_S = 0.5
POOL_TAG = "karpenter.sh/nodepool"


def caps_of(folder: Path) -> dict[str, int]:
    """Pool -> most nodes, over all cluster files that can be read; the rule is written out here on purpose."""
    found: dict[str, int] = {}
    for path in folder.glob("*.yaml"):
        try:
            spec = yaml.safe_load(path.read_text())
            pools = [pool for pool in spec["nodePools"] if pool.get("manage", True)]
            for pool in pools:
                wanted = int(pool.get("wantedNodes") or 0)
                cap = (pool.get("limits") or {}).get("nodes", wanted + 1 if wanted else 0)
                found[pool["name"]] = max(found.get(pool["name"], 0), int(cap))
        except (OSError, yaml.YAMLError, LookupError, TypeError, ValueError, AttributeError):
            continue  # hostile files are other tests' business
    return found


class CapWatch:
    """Looks until it is stopped.

    A file that changes within a test may lower a cap below what stands already, so the highest cap of the test counts.

    :ivar looks: how often it has looked.
    :ivar broken: pool -> the most instances beyond its cap, with the cap.
    """

    def __init__(self, fleet: Fleet) -> None:
        self._folder = fleet.clusters_dir
        env = fleet.environment
        self._ec2 = boto3.client(  # a client of its own: it is used in a thread
            "ec2",
            endpoint_url=env["AWS_ENDPOINT_URL"],
            region_name=env["AWS_DEFAULT_REGION"],
            aws_access_key_id=env["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=env["AWS_SECRET_ACCESS_KEY"],
        )
        self._caps = caps_of(self._folder)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="caps", daemon=True)
        self.looks = 0
        self.broken: dict[str, tuple[int, int]] = {}
        self.most: Counter[str] = Counter()

    def start(self) -> CapWatch:
        self._look()  # whatever is wrong with looking shows here, and not only in a thread
        self._thread.start()
        return self

    def stop(self) -> None:
        self._over.set()
        self._thread.join()
        self._look()
        self._ec2.close()

    def _watch(self) -> None:
        while not self._over.wait(INTERVAL_S):
            try:
                self._look()
            except Exception:  # noqa: BLE001, S112 - tests take AWS away; the looks before and after must succeed
                continue

    def _look(self) -> None:
        for pool, cap in caps_of(self._folder).items():
            self._caps[pool] = max(cap, self._caps.get(pool, 0))
        for pool, count in self._living().items():
            self.most[pool] = max(self.most[pool], count)
            cap = self._caps.get(pool)
            if cap is not None and count > max(cap, self.broken.get(pool, (0, 0))[0]):
                self.broken[pool] = (count, cap)
        self.looks += 1

    def _living(self) -> Counter[str]:
        """Instances that start or run, by pool; what shuts down no longer counts for Karpenter either."""
        filters: list[Any] = [
            {"Name": "tag-key", "Values": [POOL_TAG]},
            {"Name": "instance-state-name", "Values": ["pending", "running"]},
        ]
        found: Counter[str] = Counter()
        for page in self._ec2.get_paginator("describe_instances").paginate(Filters=filters):
            for reservation in page["Reservations"]:
                for instance in reservation["Instances"]:
                    found[next(tag["Value"] for tag in instance["Tags"] if tag["Key"] == POOL_TAG)] += 1
        return found
