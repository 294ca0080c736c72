"""What helm prints: its version, and the typed error of its complaint. Pure.

The exit code is 0 or 1 and proves nothing; the text only *explains* a failure that storage has shown.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from gpu_fleet.core.errors import ApiUnavailable, Forbidden, GpuFleetError, Invalid, ToolError, TransientError
from gpu_fleet.core.releases.charts.archives import MIRRORS_VARIABLE
from gpu_fleet.core.releases.helm.symptoms import is_refusal, symptom_of

_VERSION = re.compile(r"v(?P<major>[0-9]+)\.(?P<minor>[0-9]+)\.(?P<patch>[0-9]+)")
_TOKENS = re.compile(r"(k8s-aws-v1\.)[A-Za-z0-9_=-]+|(?<=[Bb]earer )[A-Za-z0-9._~+/=-]{8,}")
#: Lines that helm prints whether it fails or not: warnings of the API server, logged by client-go (klog v2.140.0
#: internal/buffer/buffer.go, ``FormatHeader``), and of helm 4 itself (helm v4.2.3 internal/logging/logging.go,
#: ``NewLogger``). Helm logs causes as errors.
_PASSING = re.compile(
    r"[IW][0-9]{4} [0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)? +[0-9]+ \S+:[0-9]+\] |(time=\S+ )?level=(WARN|INFO|DEBUG)\b"
)
_MAX_MESSAGE = 1500


@dataclass(frozen=True)
class HelmVersion:
    """A helm version. ``major`` decides which flags exist."""

    major: int
    minor: int
    patch: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"

    @property
    def server_side_apply(self) -> bool:
        """Helm 4 applies on the server and so knows field conflicts and ``--force-conflicts``."""
        return self.major >= 4


def parse_version(text: str, binary: str) -> HelmVersion:
    """The version in ``helm version --template '{{.Version}}'``.

    :raises ToolError: if it is not a version, or one that was never tested: neither 4.x nor 3.17 and later.
    """
    match = _VERSION.search(text)
    if match is None:
        raise ToolError(
            f"{binary} does not say its version; it is not helm, or broken: set HELM_BIN to a helm 4.x or 3.17.x",
            reason="HelmVersionUnknown",
        )
    version = HelmVersion(int(match["major"]), int(match["minor"]), int(match["patch"]))
    if version.major == 4 or (version.major == 3 and version.minor >= 17):
        return version
    raise ToolError(
        f"helm {version} ({binary}) is not supported: install helm 4.x or 3.17.x, or set HELM_BIN to one",
        reason="HelmVersionUnsupported",
    )


def redact(text: str) -> str:
    """Text without bearer tokens."""
    return _TOKENS.sub(lambda match: f"{match[1] or ''}(hidden)", text)


def complaint(stderr: str) -> str:
    """The part of helm's stderr worth showing: from its last ``Error:`` on, without noise and tokens."""
    lines = _without_noise(stderr)
    start = next((i for i in range(len(lines) - 1, -1, -1) if lines[i].startswith("Error:")), None)
    chosen = lines[start:] if start is not None else lines[-5:]
    return " ".join(" ".join(chosen).removeprefix("Error:").split())[:_MAX_MESSAGE]


def error_of(what: str, stderr: str) -> GpuFleetError:
    """The typed error of a failed helm command.

    The complaint is read first, and the rest of stderr only if nothing known is in it: helm 4 logs the causes line by
    line and ends with a summary.

    :param what: the operation and the release, for example ``upgrade of release gpu/plugin``.
    """
    text = complaint(stderr) or "helm failed without giving a reason"
    found = symptom_of(text)
    if found is None and (found := symptom_of(whole := "\n".join(_without_noise(stderr)))) is not None:
        text = f"{text} ({found.sentence(whole)})"
    if found is not None:
        return found.error(f"{what}: {text}; {found.remedy}", reason=found.reason)
    if is_refusal(text):
        return Invalid(
            f"{what}: {text}; the API server refuses this and would refuse a retry: correct the values or the chart",
            reason="HelmRefused",
        )
    return TransientError(
        f"{what}: {text}; run again, and if it fails the same way look at the chart", reason="HelmFailed"
    )


def _without_noise(stderr: str) -> list[str]:
    """The informative lines; all lines if there is no informative one."""
    lines = [line for line in redact(stderr).splitlines() if line.strip() and not line.startswith("WARNING")]
    return [line for line in lines if not _PASSING.match(line)] or lines


#: An HTTP status is a word of its own, after a space; other digits are a port, a version, or part of an address.
_PULL_ABSENT = re.compile(
    r"not found|no chart version found|(?<!\S)404\b|manifest unknown|no chart name found", re.IGNORECASE
)
_PULL_FORBIDDEN = re.compile(r"(?<!\S)(401|403)\b|unauthorized|denied|forbidden", re.IGNORECASE)
_ADDRESS = re.compile(r"\w+://[^\s\"]+")


def pull_error(what: str, stderr: str) -> GpuFleetError:
    """The typed error of a failed ``helm pull``; nothing has been written to any cluster then."""
    text = complaint(stderr) or "helm failed without giving a reason"
    said = _ADDRESS.sub("", text)
    if _PULL_ABSENT.search(said):
        return Invalid(f"{what}: {text}; check repository, chart and version", reason="ChartNotFound")
    if _PULL_FORBIDDEN.search(said):
        return Forbidden(f"{what}: {text}; log in to the registry (HELM_REGISTRY_CONFIG)", reason="ChartForbidden")
    return ApiUnavailable(
        f"{what}: {text}; check the address and the network, or set a mirror in {MIRRORS_VARIABLE}",
        reason="ChartUnreachable",
    )
