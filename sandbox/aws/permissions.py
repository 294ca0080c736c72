"""The IAM action of a request, and two faults that depend on it.

* ``aws-denied`` with ``{"actions": ["iam:GetRole", …]}``: everybody has every permission but these;
* ``aws-absent`` with ``{"what": [...]}``: the account lacks something that Karpenter needs. ``access-entry``,
  ``pod-identity``, ``queue``, ``node-role``, ``spot-role``, ``discovery-tags``.

Codes and formats as in docs.aws.amazon.com, 'Common errors' of each service.
"""

from __future__ import annotations

import json
import uuid
from typing import Any
from urllib.parse import parse_qs
from xml.sax.saxutils import escape

from aiohttp import web

from sandbox.aws.signature import Request
from sandbox.faults import FaultBoard

DENIED = "aws-denied"
ABSENT = "aws-absent"
SPOT_ROLE = "AWSServiceRoleForEC2Spot"
_DISCOVERY = "karpenter.sh/discovery"

#: EKS is a REST API: method and path after ``/clusters/<name>`` -> action.
_EKS_ACTIONS = {
    ("GET", ""): "DescribeCluster",
    ("GET", "access-entries"): "ListAccessEntries",
    ("GET", "access-entries/*"): "DescribeAccessEntry",
    ("GET", "pod-identity-associations"): "ListPodIdentityAssociations",
    ("GET", "pod-identity-associations/*"): "DescribePodIdentityAssociation",
    ("GET", "addons"): "ListAddons",
    ("GET", "fargate-profiles"): "ListFargateProfiles",
    ("GET", "node-groups"): "ListNodegroups",
    ("GET", "node-groups/*"): "DescribeNodegroup",
}
#: A permission for one message is one for a batch (Service Authorization Reference, 'Amazon SQS': no such actions).
_BATCHES = {f"{name}Batch": name for name in ("SendMessage", "DeleteMessage", "ChangeMessageVisibility")}


def absent(faults: FaultBoard, what: str) -> bool:
    """Whether the account lacks it now."""
    fault = faults.active(ABSENT)
    return fault is not None and what in fault.get("what", [])


def action_of(seen: Request, service: str) -> str:
    """``ec2:DescribeSubnets``; an unknown call gives the service alone."""
    if service == "eks":
        parts = seen.path.strip("/").split("/")
        rest = parts[2:3] + ["*"] * (len(parts) > 3)
        return f"eks:{_EKS_ACTIONS.get((seen.method, '/'.join(rest)), '')}"
    target = seen.headers.get("x-amz-target", "")
    if target:
        name = target.rpartition(".")[2]
        return f"{service}:{_BATCHES.get(name, name) if service == 'sqs' else name}"
    return f"{service}:{_parameters(seen).get('Action', '')}"


def _parameters(seen: Request) -> dict[str, str]:
    text = seen.body.decode("utf-8", "replace") if seen.body else seen.query
    return {key: values[0] for key, values in parse_qs(text).items()}


def answer(faults: FaultBoard, seen: Request, service: str) -> web.Response | None:
    """The reply that a fault gives to this request, if one does."""
    action = action_of(seen, service)
    denied = faults.active(DENIED)
    if denied is not None and action in denied.get("actions", []):
        return _denied(service, action)
    if action == "iam:SimulatePrincipalPolicy":
        return _simulated(_parameters(seen), denied.get("actions", []) if denied is not None else [])
    if action == "sqs:GetQueueUrl" and absent(faults, "queue"):
        name = json.loads(seen.body or b"{}").get("QueueName", "")
        if not str(name).endswith(("gpu-fleet", "dlq")):
            return _no_queue()
    if action == "iam:GetRole":
        name = _parameters(seen).get("RoleName", "")
        if absent(faults, "spot-role" if name == SPOT_ROLE else "node-role"):
            message = f"The role with name {name} cannot be found."
            return _query_error(404, "NoSuchEntity", message)
    if absent(faults, "discovery-tags") and action in ("ec2:DescribeSubnets", "ec2:DescribeSecurityGroups"):
        asked = _parameters(seen).values()
        if f"tag:{_DISCOVERY}" in asked:
            return _nothing_found(action)
    return None


def _denied(service: str, action: str) -> web.Response:
    message = f"User is not authorized to perform: {action} because no identity-based policy allows the {action} action"
    if service == "ec2":
        body = (
            "<Response><Errors><Error><Code>UnauthorizedOperation</Code>"
            f"<Message>You are not authorized to perform this operation. {escape(message)}</Message></Error></Errors>"
            f"<RequestID>{uuid.uuid4()}</RequestID></Response>"
        )
        return web.Response(status=403, text=body, content_type="text/xml")
    if service in ("iam", "sts", "autoscaling"):
        return _query_error(403, "AccessDenied", message)
    headers = {"x-amzn-ErrorType": "AccessDeniedException"}
    if service == "sqs":  # the JSON protocol keeps the codes of the older query protocol in a header
        headers["x-amzn-query-error"] = "AccessDenied;Sender"
    body = json.dumps({"__type": "AccessDeniedException", "message": message})
    return web.Response(status=400 if service in ("sqs", "events", "pricing") else 403, text=body, headers=headers)


def _simulated(asked: dict[str, str], denied: list[str]) -> web.Response:
    """What IAM's simulator says (IAM API Reference, SimulatePrincipalPolicy): faults decide here, not policies."""
    names = [value for key, value in asked.items() if key.startswith("ActionNames.member.")]
    members = "".join(
        f"<member><EvalActionName>{escape(name)}</EvalActionName><EvalResourceName>*</EvalResourceName>"
        f"<EvalDecision>{'implicitDeny' if name in denied else 'allowed'}</EvalDecision></member>"
        for name in names
    )
    body = (
        '<SimulatePrincipalPolicyResponse xmlns="https://iam.amazonaws.com/doc/2010-05-08/">'
        f"<SimulatePrincipalPolicyResult><EvaluationResults>{members}</EvaluationResults>"
        "<IsTruncated>false</IsTruncated></SimulatePrincipalPolicyResult>"
        f"<ResponseMetadata><RequestId>{uuid.uuid4()}</RequestId></ResponseMetadata></SimulatePrincipalPolicyResponse>"
    )
    return web.Response(text=body, content_type="text/xml")


def _query_error(status: int, code: str, message: str) -> web.Response:
    body = (
        f"<ErrorResponse><Error><Type>Sender</Type><Code>{code}</Code><Message>{escape(message)}</Message></Error>"
        f"<RequestId>{uuid.uuid4()}</RequestId></ErrorResponse>"
    )
    return web.Response(status=status, text=body, content_type="text/xml")


def _no_queue() -> web.Response:
    body = {"__type": "com.amazonaws.sqs#QueueDoesNotExist", "message": "The specified queue does not exist."}
    headers = {"x-amzn-query-error": "AWS.SimpleQueueService.NonExistentQueue;Sender"}
    return web.Response(status=400, text=json.dumps(body), headers=headers, content_type="application/x-amz-json-1.0")


def _nothing_found(action: str) -> web.Response:
    name = action.partition(":")[2]
    empty: dict[str, Any] = {"DescribeSubnets": "subnetSet", "DescribeSecurityGroups": "securityGroupInfo"}
    body = (
        f'<{name}Response xmlns="http://ec2.amazonaws.com/doc/2016-11-15/"><requestId>{uuid.uuid4()}</requestId>'
        f"<{empty[name]}/></{name}Response>"
    )
    return web.Response(text=body, content_type="text/xml")
