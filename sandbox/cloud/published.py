"""What a running sandbox publishes: ``state.json`` and the environment of its users."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from sandbox.aws.reservations import RECLAIM_S
from sandbox.chartrepo import ChartRepository
from sandbox.cloud.aws import RunningAws
from sandbox.cloud.control import ControlApi
from sandbox.cloud.options import Options
from sandbox.kube.client import Kube
from sandbox.settings import Settings


def environment(
    settings: Settings,
    aws: RunningAws | None,
    kubeconfig: Path | None,
    charts: ChartRepository | None,
    control: ControlApi | None,
) -> dict[str, str]:
    """What ``python -m sandbox env`` prints."""
    variables: dict[str, str] = {}
    if aws is not None:
        account = aws.account
        variables |= {
            "AIRFLOW_CONN_AWS_DEMO": json.dumps(
                {
                    "conn_type": "aws",
                    "login": account.access_key_id,
                    "password": account.secret_access_key,
                    "extra": {"endpoint_url": aws.shim.url, "region_name": settings.region},
                }
            ),
            "AWS_ENDPOINT_URL": aws.shim.url,
            "AWS_ACCESS_KEY_ID": account.access_key_id,
            "AWS_SECRET_ACCESS_KEY": account.secret_access_key,
            "AWS_DEFAULT_REGION": settings.region,
            # EC2 takes a Capacity Block back earlier by the clock of the world than by that of its users.
            "GPU_FLEET_BLOCK_RECLAIM": f"{RECLAIM_S / settings.speed:g}",
        }
    if kubeconfig is not None:
        variables["KUBECONFIG"] = str(kubeconfig.resolve())
    if charts is not None:
        variables["GPU_FLEET_CHART_MIRRORS"] = json.dumps(charts.mirrors())
    if control is not None:
        variables["SANDBOX_CONTROL"] = control.url
    return variables


def running(
    settings: Settings,
    options: Options,
    aws: RunningAws | None,
    kubeconfig: Path | None,
    charts: ChartRepository | None,
) -> dict[str, Any]:
    """What ``state.json`` says of the parts."""
    found: dict[str, Any] = {
        "pid": os.getpid(),
        "pids": {"sandbox": os.getpid(), **({"moto": aws.moto.pid} if aws is not None else {})},
        "speed": settings.speed,
        "seed": settings.seed,
        "cluster": settings.cluster_name,
        "region": settings.region,
        "parts": sorted(options.parts),
    }
    if aws is not None:
        found["aws"] = {"url": aws.shim.url, "account": settings.account, **aws.account.to_json()}
    if kubeconfig is not None:
        found["kubernetes"] = {
            "version": settings.kubernetes_version,
            "url": Kube.from_kubeconfig(kubeconfig).server,
            "kubeconfig": str(kubeconfig.resolve()),
        }
    if charts is not None:
        found["charts"] = {"url": charts.url}
    return found
