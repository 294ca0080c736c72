"""User data of a cluster file, as Karpenter sees it: a MIME archive, a NodeConfig or a script. Pure.

Karpenter takes text that begins with a MIME header for an archive, a YAML mapping for a NodeConfig, and *everything
else* for a script (aws/karpenter-provider-aws v1.14.1 pkg/providers/amifamily/bootstrap/nodeadm.go, parseUserData), so
a NodeConfig with a mistake in it would be run as a script: that is refused here.
"""

from __future__ import annotations

import email
import email.errors
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.message import Message
from typing import Any

import yaml

NODE_CONFIG, SHELL = "application/node.eks.aws", "text/x-shellscript"
#: Karpenter's sign of a MIME archive.
_MIME_HEADERS = ("MIME-Version:", "Content-Type:")


class UserDataError(ValueError):
    """
    :ivar line: of the user data, from 1; ``None`` where it is about the whole.
    :ivar remedy: what to do.
    """

    def __init__(self, message: str, remedy: str, line: int | None = None) -> None:
        super().__init__(f"line {line}: {message}" if line else message)
        self.remedy = remedy
        self.line = line


@dataclass(frozen=True)
class Part:
    """A part of AL2023's user data.

    :ivar kind: its content type in full.
    :ivar line: of the whole text at which its content begins, from 1.
    """

    kind: str
    text: str
    line: int = 1

    @property
    def is_node_config(self) -> bool:
        return self.kind.partition(";")[0].strip() == NODE_CONFIG


def parts_of(text: str) -> list[Part]:
    """The parts of AL2023's user data, as Karpenter sees them.

    :raises UserDataError: for what is neither a MIME archive nor a NodeConfig nor a script.
    """
    if not text.strip():
        return []
    if text.strip().startswith(_MIME_HEADERS):
        return list(_archive(text))
    if text.lstrip().startswith("#!"):
        if isinstance(_quiet_yaml(text), Mapping):
            raise UserDataError(
                "the script is also a YAML mapping, and Karpenter would take it for a NodeConfig",
                "put it into a MIME archive, as a part of type text/x-shellscript",
                1,
            )
        return [Part(f'{SHELL}; charset="us-ascii"', text)]
    return [Part(NODE_CONFIG, text)]


def _quiet_yaml(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return None


def _archive(text: str) -> Iterator[Part]:
    if text != text.lstrip():
        raise UserDataError("a MIME archive begins with its headers", "remove what is before them", 1)
    message = email.message_from_string(text)
    boundary = message.get_boundary()
    if message.get_content_maintype() != "multipart" or not boundary:
        raise UserDataError(
            f"the archive's Content-Type is {message.get('Content-Type')!r}, without parts",
            'write Content-Type: multipart/mixed; boundary="BOUNDARY"',
            1,
        )
    broken = {type(defect) for defect in message.defects}
    if email.errors.StartBoundaryNotFoundDefect in broken:
        raise UserDataError(f"no line '--{boundary}' begins a part", "separate the parts by the boundary")
    if email.errors.CloseBoundaryNotFoundDefect in broken:
        # Go's reader ends with an error there, and Karpenter launches nothing.
        raise UserDataError(f"the archive does not end with '--{boundary}--'", "add that line at the end")
    lines = [number for number, line in enumerate(text.splitlines(), 1) if line.rstrip() == f"--{boundary}"]
    found = [part for part in message.get_payload() if isinstance(part, Message)]
    for part, start in zip(found, lines, strict=True):
        body = start + 1 + len(part.keys()) + 1
        kind = part.get("Content-Type", "")
        if not kind:
            raise UserDataError("a part has no Content-Type, so neither nodeadm nor cloud-init reads it",
                                f"write Content-Type: {NODE_CONFIG} or {SHELL}", start)  # fmt: skip
        content = part.get_payload()
        if not isinstance(content, str):
            raise UserDataError("a part has parts of its own, which nodeadm ignores", "flatten the archive", start)
        yield Part(str(kind), content, body)


def mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
