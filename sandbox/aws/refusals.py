"""How AWS refuses a request before any service looks at it, in the words and the format of each protocol.

The codes differ by protocol (docs.aws.amazon.com: 'Common errors' of EC2, STS and EKS): EC2 says ``AuthFailure`` with
401, the query services ``InvalidClientTokenId`` with 403, the JSON services ``UnrecognizedClientException``.
"""

from __future__ import annotations

import json
import uuid
from enum import Enum
from xml.sax.saxutils import escape

from aiohttp import web


class Refusal(Enum):
    """Why, with the message."""

    UNSIGNED = "Missing Authentication Token"
    UNKNOWN_KEY = "The security token included in the request is invalid."
    BAD_SIGNATURE = (
        "The request signature we calculated does not match the signature you provided. Check your AWS Secret Access "
        "Key and signing method. Consult the service documentation for details."
    )
    EXPIRED = "Signature expired"
    BAD_REGION = "Credential should be scoped to a valid region."


_QUERY_SERVICES = {"sts", "iam", "cloudformation", "autoscaling", "sns", "monitoring", "elasticloadbalancing"}
_QUERY_CODES = {
    Refusal.UNSIGNED: "MissingAuthenticationToken",
    Refusal.UNKNOWN_KEY: "InvalidClientTokenId",
    Refusal.BAD_SIGNATURE: "SignatureDoesNotMatch",
    Refusal.EXPIRED: "SignatureDoesNotMatch",
    Refusal.BAD_REGION: "SignatureDoesNotMatch",
}
_JSON_CODES = {
    Refusal.UNSIGNED: "MissingAuthenticationTokenException",
    Refusal.UNKNOWN_KEY: "UnrecognizedClientException",
    Refusal.BAD_SIGNATURE: "InvalidSignatureException",
    Refusal.EXPIRED: "InvalidSignatureException",
    Refusal.BAD_REGION: "InvalidSignatureException",
}
_EC2_MESSAGE = "AWS was not able to validate the provided access credentials"


def respond(refusal: Refusal, service: str, *, target: bool = False) -> web.Response:
    """
    :param service: as in the credential scope, ``ec2``.
    :param target: whether the request carried ``X-Amz-Target`` (JSON protocols, which answer 400 rather than 403).
    """
    request_id = str(uuid.uuid4())
    if service == "ec2":
        code = "AuthFailure" if refusal is not Refusal.EXPIRED else "RequestExpired"
        message = _EC2_MESSAGE if refusal is not Refusal.EXPIRED else refusal.value
        body = (
            f"<Response><Errors><Error><Code>{code}</Code><Message>{escape(message)}</Message></Error></Errors>"
            f"<RequestID>{request_id}</RequestID></Response>"
        )
        return web.Response(status=401, text=body, content_type="text/xml")
    if service in _QUERY_SERVICES and not target:
        body = (
            f"<ErrorResponse><Error><Type>Sender</Type><Code>{_QUERY_CODES[refusal]}</Code>"
            f"<Message>{escape(refusal.value)}</Message></Error><RequestId>{request_id}</RequestId></ErrorResponse>"
        )
        return web.Response(status=403, text=body, content_type="text/xml")
    code = _JSON_CODES[refusal]
    return web.Response(
        status=400 if target else 403,
        text=json.dumps({"__type": code, "message": refusal.value}),
        content_type="application/x-amz-json-1.1" if target else "application/json",
        headers={"x-amzn-ErrorType": code, "x-amzn-RequestId": request_id},
    )
