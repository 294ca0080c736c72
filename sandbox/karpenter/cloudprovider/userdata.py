"""User data that Karpenter makes of a NodeClaim and its class (aws/karpenter-provider-aws v1.14.1
``pkg/providers/amifamily/bootstrap``)."""

from __future__ import annotations

import base64
import email
import json
import tomllib
from email.message import Message
from typing import Any

import yaml

Object = dict[str, Any]

_BOUNDARY = "//"
_NODE_CONFIG = "application/node.eks.aws"
#: ``bottlerocket.go``: what sets up instance store before images are pulled.
_MOUNT = """
[settings.bootstrap-commands.000-mount-instance-storage]
commands = [["apiclient", "ephemeral-storage", "init"], ["apiclient", "ephemeral-storage", "bind"]]
mode = "always"
essential = true
"""


class UserDataError(Exception):
    """The launch template cannot be made; the message is Karpenter's."""


def user_data(claim: Object, node_class: Object, cluster: str) -> str:
    """What EC2 gets, in base64 once (boto3 does the outer one).

    Of Bottlerocket's settings for Kubernetes only what the sandbox's nodes read is written.

    :raises UserDataError: for user data of the class that its family cannot read.
    """
    spec = node_class["spec"]
    custom, raid = str(spec.get("userData") or ""), spec.get("instanceStorePolicy") == "RAID0"
    if _bottlerocket(spec):
        try:
            tomllib.loads(custom)
        except tomllib.TOMLDecodeError as error:
            raise UserDataError(f"invalid UserData toml: {error}") from error
        text = custom + (_MOUNT if raid else "")
    else:
        text = _al2023(claim, custom, cluster, raid=raid)
    return base64.b64encode(text.encode()).decode()


def _bottlerocket(spec: Object) -> bool:
    """``EC2NodeClass.AMIFamily``."""
    aliases = [str(term.get("alias", "")) for term in spec.get("amiSelectorTerms") or []]
    named = spec.get("amiFamily")
    return named == "Bottlerocket" if named else any(alias.startswith("bottlerocket@") for alias in aliases)


def _al2023(claim: Object, custom: str, cluster: str, *, raid: bool) -> str:
    """nodeadm's NodeConfig with the labels and taints to register with, behind the parts of the class."""
    spec = claim["spec"]
    taints = [*(spec.get("taints") or []), *(spec.get("startupTaints") or [])]
    shown = [f"{taint['key']}={taint.get('value', '')}:{taint['effect']}" for taint in taints]
    labels = ",".join(f"{key}={value}" for key, value in sorted((claim["metadata"].get("labels") or {}).items()))
    flags = [
        f"--node-labels={labels}",
        f"--register-with-taints={','.join(['karpenter.sh/unregistered:NoExecute', *shown])}",
    ]
    body: Object = {"cluster": {"name": cluster}, "kubelet": {"flags": flags}}
    if raid:
        body["instance"] = {"localStorage": {"strategy": "RAID0"}}
    config = json.dumps({"apiVersion": "node.eks.aws/v1alpha1", "kind": "NodeConfig", "spec": body})
    lines = ["MIME-Version: 1.0", f'Content-Type: multipart/mixed; boundary="{_BOUNDARY}"', ""]
    for kind, content in [*_custom_parts(custom), (_NODE_CONFIG, config)]:
        lines += [f"--{_BOUNDARY}", f"Content-Type: {kind}", "", content]
    return "\n".join([*lines, f"--{_BOUNDARY}--", ""])


def _custom_parts(text: str) -> list[tuple[str, str]]:
    """``nodeadm.go``, parseUserData: an archive, a YAML mapping, or else a script."""
    if not text:
        return []
    if text.strip().startswith(("MIME-Version:", "Content-Type:")):
        payload = email.message_from_string(text).get_payload()
        if not isinstance(payload, list):
            raise UserDataError("parsing custom UserData, archive is not in multipart format")
        parts = [part for part in payload if isinstance(part, Message)]
        return [(str(part.get("Content-Type", "")), str(part.get_payload())) for part in parts]
    try:
        mapping = isinstance(yaml.safe_load(text), dict)
    except yaml.YAMLError:
        mapping = False
    return [(_NODE_CONFIG if mapping else 'text/x-shellscript; charset="us-ascii"', text)]
