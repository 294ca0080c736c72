"""Names in the cluster file: of objects, labels and taints, and of charts and their versions."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

from gpu_fleet.core.spec.base import Pattern

_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_DNS_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LABEL_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
_EXACT_VERSION = re.compile(r"v?[0-9]{1,9}\.[0-9]{1,9}\.[0-9]{1,9}(-[0-9A-Za-z.-]{1,64})?(\+[0-9A-Za-z.-]{1,64})?")


def _dns_label(value: str) -> str:
    if len(value) > 63:
        raise ValueError(f"{value!r} has {len(value)} characters; shorten it to the 63 of a DNS-1123 label")
    if not _DNS_LABEL.fullmatch(value):
        raise ValueError(
            f"{value!r} is not a DNS-1123 label; use lower-case letters, digits and '-', beginning and ending with a "
            "letter or digit"
        )
    return value


def label_key(value: str) -> str:
    """The key of a label or taint, as Kubernetes accepts it: ``name`` or ``dns.subdomain/name``
    (https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#syntax-and-character-set).

    :raises ValueError: says how to write it.
    """
    prefix, slash, name = value.rpartition("/")
    if slash and (len(prefix) > 253 or not _DNS_SUBDOMAIN.fullmatch(prefix)):
        raise ValueError(
            f"{prefix!r} before the '/' of {value!r} is not a DNS subdomain; "
            f"write for example example.com/{name or 'x'}"
        )
    if len(name) > 63 or not _LABEL_NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} is not the name of a label or taint; use at most 63 letters, digits, '-', '_' and '.', "
            "beginning and ending with a letter or digit"
        )
    return value


def label_value(value: str) -> str:
    """The value of a label or taint, as Kubernetes accepts it.

    :raises ValueError: says how to write it.
    """
    if value and (len(value) > 63 or not _LABEL_NAME.fullmatch(value)):
        raise ValueError(
            f"{value!r} is not the value of a label or taint; use at most 63 letters, digits, '-', '_' and '.', "
            "beginning and ending with a letter or digit"
        )
    return value


#: A Kubernetes object name that is also used as a label value, a host name part and a task group id.
DnsLabel = Annotated[str, AfterValidator(_dns_label)]


def _digest(value: str) -> str:
    return f"{value!r} is not the sha256 of an archive; write sha256: and its 64 lower-case hexadecimal digits"


def _repository(value: str) -> str:
    if value.endswith("/"):
        return f"{value!r} ends with a slash; write {value.rstrip('/')}"
    return f"{value!r} is not the address of a chart repository; write oci://registry/path or https://host/path"


#: Of a chart's archive.
Digest = Annotated[str, Pattern(r"sha256:[0-9a-f]{64}", _digest)]
ChartRepository = Annotated[str, Pattern(r"(oci|https?)://\S*[^\s/]", _repository)]


def _exact_version(value: str) -> str:
    if not _EXACT_VERSION.fullmatch(value):
        raise ValueError(f"{value!r} does not pin one version; write major.minor.patch, for example 0.20.0")
    return value


def _quoted(value: Any) -> Any:
    if isinstance(value, float | int) and not isinstance(value, bool):
        raise ValueError(
            f'{value!r} is a number in YAML, where 1.30 reads as 1.3; put it in quotes, for example "1.35"'
        )
    return value


#: Exactly one version: no range, no wildcard, no 'latest'.
ExactVersion = Annotated[str, BeforeValidator(_quoted), AfterValidator(_exact_version)]
#: A version such as "1.35" that YAML would read as a number.
QuotedVersion = Annotated[str, BeforeValidator(_quoted)]


def version_tuple(version: str) -> tuple[int, ...]:
    """``"1.14.1"`` -> ``(1, 14, 1)``; pre-release and build parts are left out."""
    return tuple(int(part) for part in re.findall(r"[0-9]+", re.split(r"[-+]", version.lstrip("v"))[0]))
