"""docs/reference/environment.md: every environment variable, checked against the sources that read them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gpu_fleet.core.reservations.calendar import RECLAIM_S
from gpu_fleet.core.trust import CONNECTIONS_VARIABLE, KUBECONFIGS_VARIABLE, NOTIFIERS_VARIABLE, Trust
from gpu_fleet.hooks.settings import Settings
from tools.reference.markup import ROOT, page, table

#: Where variables are read or set.
SOURCES = ("plugins", "dags", "include", "tools", "demo", "sandbox", "bench", "tests", "Makefile", "Dockerfile")
SOURCES_AT_ROOT = ("docker-compose*.yaml", ".env.example")
_OURS = re.compile(r"\bGPU_FLEET_[A-Z_]*[A-Z]\b")
_SUFFIXES = frozenset({".py", ".sh", ".yaml", ".yml", ".example", ""})

ALL = "all components"
WORKERS = "workers"
PARSING = "DAG processor, workers"


@dataclass(frozen=True)
class Variable:
    """One variable.

    :ivar default: what holds without it, in words or as a value in backquotes.
    :ivar where: the components that read it.
    """

    name: str
    meaning: str
    default: str
    where: str


def _seconds(value: float) -> str:
    return f"`{value:g}`"


def _listed(items: tuple[str, ...]) -> str:
    return f"`{','.join(items)}`" if items else "none"


_TRUST = Trust()
PACKAGE = (
    Variable(
        "GPU_FLEET_DEPLOYMENT",
        "Name of this Airflow in the record of the [cluster lock](../concepts/glossary.md#cluster-lock). It must "
        "differ between deployments that share a cluster, or one would take over the other's lock. A deployment "
        "with neither this name nor `[api] base_url` never takes over the lock of a run that it does not know",
        "`[api] base_url`",
        WORKERS,
    ),
    Variable("GPU_FLEET_CLUSTERS_DIR", "Folder of the cluster files", "`clusters` in `GPU_FLEET_INCLUDE_DIR`", ALL),
    Variable(
        "GPU_FLEET_INCLUDE_DIR",
        "Folder of cluster files, manifests, Helm base values, probe scripts, prices and `charts.lock.yaml`",
        "`include` beside `plugins`",
        ALL,
    ),
    Variable(
        "GPU_FLEET_STATE_DIR",
        "Folder that DAG processor and workers share, in which runs note the spec that they work on: see "
        "[Changing a cluster file while a run is under way]"
        "(../guides/cluster-files.md#changing-a-cluster-file-while-a-run-is-under-way)",
        "none: nothing is noted",
        PARSING,
    ),
    Variable(
        NOTIFIERS_VARIABLE,
        "Import paths that `validation.notify` may name: classes, or the beginning of a path up to a dot; "
        "comma-separated. An empty value allows nothing. See [who is trusted with "
        "what](../guides/deploy.md#who-is-trusted-with-what)",
        _listed(_TRUST.notifiers),
        "workers, DAG processor, triggerer",
    ),
    Variable(
        CONNECTIONS_VARIABLE,
        "Ids of Airflow connections that cluster files may name; patterns with `*`, comma-separated",
        _listed(_TRUST.connections),
        "workers, DAG processor, triggerer",
    ),
    Variable(
        KUBECONFIGS_VARIABLE,
        "Kubeconfig files, or folders of them, that `cluster.access.path` may name; comma-separated",
        _listed(_TRUST.kubeconfigs),
        "workers, DAG processor, triggerer",
    ),
    Variable(
        "GPU_FLEET_RETRY_DELAY",
        "Seconds before Airflow retries a failed task; read when a DAG is parsed",
        _seconds(Settings.retry_delay_s),
        PARSING,
    ),
    Variable(
        "GPU_FLEET_POLL_INTERVAL",
        "Seconds between looks at AWS, which cannot be watched",
        _seconds(Settings.poll_interval_s),
        "workers, triggerer",
    ),
    Variable(
        "GPU_FLEET_TURN_RECHECK",
        "Seconds after which a run that waits for the cluster lock asks Airflow whether the holder is still running",
        _seconds(Settings.turn_recheck_s),
        WORKERS,
    ),
    Variable(
        "GPU_FLEET_BLOCK_RECLAIM",
        "Seconds before the end of a Capacity Block at which EC2 begins to terminate its instances (of UltraServers "
        "twice as many); preflight compares `capacityBlock.emptyBefore` with it. Change it only for a stand-in of EC2 "
        "whose clock is faster",
        _seconds(RECLAIM_S),
        WORKERS,
    ),
    Variable(
        "GPU_FLEET_CHART_MIRRORS",
        "JSON object, chart repository prefix to mirror, for networks without access to the public repositories",
        "none",
        "workers, `python -m gpu_fleet lock`",
    ),
    Variable(
        "GPU_FLEET_CHART_CACHE",
        "Folder in which workers keep chart archives",
        "`gpu-fleet/charts` in `XDG_CACHE_HOME`, else in `~/.cache`",
        WORKERS,
    ),
    Variable(
        "GPU_FLEET_LIVE_PRICES",
        "`off`: AWS is not asked for prices, and sums are made of files. See [Instance types and "
        "prices](../guides/prices.md)",
        "AWS is asked",
        WORKERS,
    ),
    Variable(
        "GPU_FLEET_PRICE_CACHE",
        "Folder in which workers keep what AWS has answered about prices: a day, spot prices ten minutes",
        "`gpu-fleet/prices` in `XDG_CACHE_HOME`, else in `~/.cache`",
        WORKERS,
    ),
    Variable("HELM_BIN", "The helm binary: version 4, or 3.17", "`helm` on `PATH`", WORKERS),
    Variable(
        "HELM_REGISTRY_CONFIG",
        "File with log-ins for OCI registries, as `helm registry login` writes it",
        "none: anonymous",
        WORKERS,
    ),
    Variable(
        "KUBECONFIG",
        'Kubeconfig for `access={"mode": "kubeconfig"}` without a path: for Helm operators, as a cluster file always '
        "names a path",
        "`~/.kube/config`",
        "workers, triggerer",
    ),
    Variable(
        "HTTPS_PROXY, NO_PROXY",
        "Proxy for the way to AWS and to the cluster; helm inherits them, with `SSL_CERT_FILE` and `SSL_CERT_DIR`",
        "none",
        "workers, triggerer",
    ),
)
AIRFLOW = (
    Variable(
        "AIRFLOW__CORE__MAX_TEMPLATED_FIELD_LENGTH",
        "Manifests and values are shown as rendered fields, which Airflow cuts at this length",
        "`4096`; set `65536`",
        ALL,
    ),
    Variable(
        "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL",
        "Seconds until a worker may notice a task's end. Until then the scheduler may mistake a task that resumed "
        "from a deferral, or whose approval was answered, for a failed one, and repeat it",
        "`5`; set `1`",
        WORKERS,
    ),
    Variable(
        "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME",
        "Seconds between scheduler loops without work",
        "`1`; with `0.05` the hand-over between tasks is ten times as fast",
        "scheduler",
    ),
)
REPOSITORY = (
    Variable("GPU_FLEET_BIND", "Address on which `docker-compose.yaml` publishes ports", "`127.0.0.1`", "Compose"),
    Variable(
        "GPU_FLEET_IMAGE", "Name of the image that `docker-compose.yaml` builds and runs", "see the file", "Compose"
    ),
    Variable(
        "GPU_FLEET_CACHE_DIR",
        "Folder for the helm and kubectl that `make` fetches if there are none",
        "`~/.cache/gpu-fleet`",
        "`make`",
    ),
    Variable("HELM_BIN, KUBECTL_BIN", "The binaries that demo and tests use", "on `PATH`, else fetched", "`make`"),
    Variable("SANDBOX_STATE_DIR", "Folder of the sandbox's state, certificates and logs", "`build/sandbox`", "sandbox"),
)


def document() -> str:
    unknown = sorted(named_in_sources() - {name for each in (*PACKAGE, *REPOSITORY) for name in each.name.split(", ")})
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: describe them in {Path(__file__).name}")
    return page(
        "Environment variables",
        "tools/reference/environment.py",
        "Set them on the components named in the last column; all are optional.",
        *_sections(),
    )


def _sections() -> Iterator[str]:
    for title, variables in (
        ("The package", PACKAGE),
        ("Airflow's own settings that matter here", AIRFLOW),
        ("Compose, `make` and the sandbox", REPOSITORY),
    ):
        rows = [
            (", ".join(f"`{name}`" for name in each.name.split(", ")), each.meaning, each.default, each.where)
            for each in variables
        ]
        yield f"## {title}\n\n{table(('variable', 'meaning', 'default', 'read by'), rows)}"


def named_in_sources() -> set[str]:
    """Every ``GPU_FLEET_…`` in the repository's sources."""
    found: set[str] = set()
    for path in _files():
        found.update(_OURS.findall(path.read_text(encoding="utf-8", errors="ignore")))
    return found


def _files() -> Iterator[Path]:
    for pattern in SOURCES_AT_ROOT:
        yield from ROOT.glob(pattern)
    for name in SOURCES:
        top = ROOT / name
        if top.is_file():
            yield top
        yield from (path for path in top.rglob("*") if path.is_file() and path.suffix in _SUFFIXES)
