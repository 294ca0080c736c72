"""What is wanted of a release: chart, values, policy, and the digest of their content."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from gpu_fleet.core.errors import SpecError

_RELEASE_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
#: It becomes an argument of ``helm pull`` and part of a file's name, so it must neither be an option nor leave a folder
#: (helm/helm v4.2.3 pkg/chart/v2/metadata.go accepts any file name).
_CHART_NAME = re.compile(r"[A-Za-z0-9](?:[-A-Za-z0-9_]|\.(?!\.))*")
_REPOSITORY = re.compile(r"(?:https?|oci)://[^\s/]\S*")
#: Helm's own limit on release names (helm pkg/chart/common: 53 characters).
MAX_RELEASE_NAME = 53
_DIGEST = re.compile(r"(sha256:)?[0-9a-f]{64}")
#: A version range would make "the same request" mean different charts on different days.
_EXACT_VERSION = re.compile(r"v?[0-9]+\.[0-9]+\.[0-9]+([-+][0-9A-Za-z.+-]+)?")


class Remediation(StrEnum):
    """What follows a failed install or upgrade."""

    ROLLBACK = "rollback"  # to the proven revision; a failed first install is uninstalled
    UNINSTALL = "uninstall"  # always uninstall, then install again
    NONE = "none"  # leave the failed revision for a person; only Helm's lock is taken off


class Conflicts(StrEnum):
    """What to do when another field manager owns a field of the manifest."""

    FAIL = "fail"
    FORCE = "force"


class Drift(StrEnum):
    """What to do when the cluster differs from the manifest although the wanted content is deployed."""

    IGNORE = "ignore"  # do not look
    WARN = "warn"  # report it
    CORRECT = "correct"  # upgrade to the same content; fields that others own only with Conflicts.FORCE


@dataclass(frozen=True)
class ChartRef:
    """Which chart.

    :ivar name: chart name in the repository, or the path of a local archive or directory if there is no repository.
    :ivar repository: ``https://…`` (a repository with index.yaml) or ``oci://…`` (a registry prefix); empty for a path.
    :ivar version: exact version; may be empty only for a local path.
    :ivar digest: sha256 of the chart archive, with or without the ``sha256:`` prefix; empty: not checked.
    :ivar content: of a local chart: the hash of the files at its path now; empty until they were read.
    :ivar declared: of a local chart: name and version in its Chart.yaml, as Helm's storage will show them; ``None``
        until it was read.
    """

    name: str
    version: str = ""
    repository: str = ""
    digest: str = ""
    content: str = ""
    declared: tuple[str, str] | None = None

    @property
    def sha256(self) -> str:
        """The wanted digest in bare hexadecimal, empty if none is wanted."""
        return self.digest.removeprefix("sha256:")

    def __str__(self) -> str:
        return f"{self.repository.rstrip('/')}/{self.name} {self.version}" if self.repository else self.name


@dataclass(frozen=True)
class ReleasePolicy:
    """How a release is treated.

    :ivar drift: what to do about objects that were changed or deleted behind Helm's back.
    :ivar history_max: revisions that Helm keeps; raised by itself where fewer would prune the proven one.
    :ivar operation_timeout: Helm's ``--timeout`` in seconds, for each hook or single wait.
    :ivar deadline: seconds after which a helm command is ended, whatever its own time-outs are.
    :ivar wait: seconds to wait in the worker for workloads (``--wait``), for charts whose hooks need ready pods.
    :ivar adopt: take over a release, or a revision, that was not made by this package.
    :ivar prune: delete objects that failed revisions created and the deployed one does not have.
    """

    remediation: Remediation = Remediation.ROLLBACK
    conflicts: Conflicts = Conflicts.FAIL
    drift: Drift = Drift.CORRECT
    create_namespace: bool = False
    skip_crds: bool = False
    wait: bool = False
    rollback_hooks: bool = True
    history_max: int = 10
    operation_timeout: int = 300
    deadline: int = 600
    adopt: bool = False
    prune: bool = True

    def __post_init__(self) -> None:
        for name, words in _WORDS:
            value = getattr(self, name)
            try:
                object.__setattr__(self, name, words(value))
            except ValueError as error:
                known = ", ".join(word.value for word in words)
                raise SpecError(f"{value!r} is not known", field=name, remedy=f"one of {known}") from error


_WORDS: tuple[tuple[str, type[StrEnum]], ...] = (
    ("remediation", Remediation),
    ("conflicts", Conflicts),
    ("drift", Drift),
)


@dataclass(frozen=True)
class ReleaseRequest:
    """One release as it should be.

    :ivar needed: a part of the values that every deployed revision must have (:mod:`gpu_fleet.core.releases.needed`):
        a rollback to a revision without it would break living nodes. No part of the digest.
    :raises SpecError: on construction, naming the field, if the request is not valid.
    """

    name: str
    namespace: str
    chart: ChartRef
    values: Mapping[str, Any] = field(default_factory=dict)
    policy: ReleasePolicy = ReleasePolicy()
    needed: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._check_types()
        if not _RELEASE_NAME.fullmatch(self.name) or len(self.name) > MAX_RELEASE_NAME:
            raise SpecError(
                f"{self.name!r} is not a release name",
                field="release_name",
                remedy=f"lower-case letters, digits, '-' and '.', at most {MAX_RELEASE_NAME} characters",
            )
        if not self.namespace:
            raise SpecError("is missing", field="namespace", remedy="name the namespace of the release")
        if not _NAMESPACE.fullmatch(self.namespace):
            raise SpecError(
                f"{self.namespace!r} is not a namespace",
                field="namespace",
                remedy="lower-case letters, digits and '-', at most 63 characters",
            )
        if not self.chart.name:
            raise SpecError("is missing", field="chart", remedy="name the chart, or give the path of an archive")
        if self.chart.repository and not _CHART_NAME.fullmatch(self.chart.name):
            raise SpecError(
                f"{self.chart.name!r} is not the name of a chart in a repository",
                field="chart",
                remedy="letters, digits, '-', '_' and '.', a letter or digit first; or leave out the repository",
            )
        if self.chart.repository and not _REPOSITORY.fullmatch(self.chart.repository):
            raise SpecError(
                f"{self.chart.repository!r} is not a chart repository",
                field="repository",
                remedy="https://… of a repository with an index, or oci://… of a registry",
            )
        if self.chart.repository and not _EXACT_VERSION.fullmatch(self.chart.version):
            raise SpecError(
                f"{self.chart.version!r} is not an exact chart version", field="version", remedy="for example 0.20.0"
            )
        if self.chart.digest and not _DIGEST.fullmatch(self.chart.digest):
            raise SpecError(f"{self.chart.digest!r} is not a sha256", field="digest", remedy="sha256:<64 hex digits>")
        if self.policy.history_max < 2:
            raise SpecError(
                f"{self.policy.history_max} leaves no revision to roll back to",
                field="history_max",
                remedy="at least 2",
            )

    def _check_types(self) -> None:
        chart = self.chart
        texts = {"release_name": self.name, "namespace": self.namespace, "chart": chart.name, "version": chart.version}
        for name, value in {**texts, "repository": chart.repository, "digest": chart.digest}.items():
            if not isinstance(value, str):
                raise SpecError(f"{value!r} is not a string", field=name, remedy="give it in quotes")
        if not isinstance(self.values, Mapping):
            raise SpecError(
                f"is a {type(self.values).__name__}, not a mapping", field="values", remedy="give a mapping of values"
            )
        try:
            json.dumps(dict(self.values), sort_keys=True, default=str)
        except TypeError as error:  # keys that have no order
            raise SpecError(
                f"holds a mapping whose keys are not all strings ({error})", field="values", remedy="quote the keys"
            ) from error

    @property
    def digest(self) -> str:
        """Content digest: chart, version, archive digest (or hash of a local chart) and values.

        40 hex digits, so that it fits into a label.
        """
        return content_digest(self.chart, self.values)

    def __str__(self) -> str:
        return f"release {self.namespace}/{self.name}"


def content_digest(chart: ChartRef, values: Mapping[str, Any]) -> str:
    """sha256 (first 40 hex digits) of a chart reference and its values, independent of key order.

    The repository is not part of it: the same chart from a mirror is the same content. A local chart may change under
    its name and version: its hash replaces a missing archive digest.
    """
    name = chart.name.rsplit("/", 1)[-1]
    archive = chart.sha256 or chart.content
    text = json.dumps([name, chart.version, archive, values], sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:40]


def same_content(release: Mapping[str, Any], request: ReleaseRequest) -> bool:
    """Whether a stored release's chart version and values are the wanted ones, also if a person made it."""
    metadata = (release.get("chart") or {}).get("metadata") or {}
    config = release.get("config") or {}
    chart = request.chart
    name, version = chart.declared or (chart.name.rsplit("/", 1)[-1], chart.version)
    return (
        metadata.get("name") == name
        and str(metadata.get("version", "")).removeprefix("v") == version.removeprefix("v")
        and config == json.loads(json.dumps(dict(request.values), default=str))
    )
