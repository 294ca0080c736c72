"""What Karpenter does with the claims of an instance that is said to end or to be unwell.

After aws/karpenter-provider-aws v1.14.1 ``pkg/controllers/interruption/utils.go``; shared by the reader of the queue
(:mod:`.interruption`) and by the poller of EC2's status checks (:mod:`.instancestatus`).
"""

from __future__ import annotations

import logging
import time
from typing import Any

from sandbox.karpenter.cloudprovider.catalog import INSTANCE_TYPE, ZONE
from sandbox.karpenter.cloudprovider.cloud import instance_id
from sandbox.karpenter.context import Context
from sandbox.karpenter.controllers import messages
from sandbox.karpenter.controllers.messages import Kind, Message
from sandbox.karpenter.durations import timestamp
from sandbox.karpenter.objects import DEADLINE, annotations_of, deleting, labels, name, provider_id, uid

log = logging.getLogger("sandbox.karpenter")
Object = dict[str, Any]


async def handle(context: Context, message: Message) -> bool:
    """Act on every claim of the message's instances; whether there was one."""
    if message.kind is Kind.NO_OP:
        return False
    wanted = set(message.instances)
    found = False
    for claim in context.claims.items():
        if provider_id(claim) and instance_id(provider_id(claim)) in wanted:
            found = True
            await _act(context, message, claim)
    return found


async def _act(context: Context, message: Message, claim: Object) -> None:
    node = context.state.node_of(claim)
    objects = [each for each in (claim, node) if each is not None]
    reason, text = messages.EVENTS[message.kind]
    context.events.interrupted(objects, reason, text, warning=message.kind in messages.ENDING)
    if message.kind is Kind.SPOT_INTERRUPTION and labels(claim).get(ZONE) and labels(claim).get(INSTANCE_TYPE):
        context.cloud.mark_spot_unavailable(labels(claim)[INSTANCE_TYPE], labels(claim)[ZONE])
    if message.kind not in messages.ENDING:
        return
    if message.kind in messages.FORCEFUL and DEADLINE not in annotations_of(claim):
        # Its pods' time is over at once, whatever budgets say (``annotateTerminationTimestamp``).
        claim = await context.patch_metadata(claim, {"annotations": {DEADLINE: timestamp(time.time())}})
    if deleting(claim):
        return
    if not await context.kube.delete("NodeClaim", name(claim), uid=uid(claim)):
        return
    log.info("initiating delete from interruption message: %s, NodeClaim %s", message.kind, name(claim))
    for each in objects:
        noun = "Node" if each is node else "NodeClaim"
        context.events.interrupted(
            [each], "TerminatingOnInterruption", f"Interruption triggered termination for the {noun}"
        )
