"""Reasons of a drain and a teardown."""

from __future__ import annotations

from gpu_fleet.core.reasons.reason import Effect, Reason, Section

_WAITS, _PERSON, _ON = Effect.WAITS, Effect.PERSON, Effect.GOES_ON

TEARDOWN = Section(
    "Teardown",
    "tasks `teardown.…` and `run_verdict`",
    (
        Reason(
            "NotApproved",
            _PERSON,
            "no person has approved the plan that the task would carry out: the approval was marked by hand, answered "
            "with Reject, or answered another plan",
            "Clear teardown.plan and what follows it, then answer teardown.approve.",
        ),
        Reason(
            "NoPlan",
            _PERSON,
            "the run has left no plan, so nothing says whether this may be removed",
            "Clear teardown.plan and what follows it.",
        ),
        Reason(
            "PlanGrew",
            _PERSON,
            "NodePools, instances or pods have been added since the plan was approved",
            "Clear teardown.plan and what follows it, and approve the new plan.",
        ),
        Reason(
            "WayNotApproved",
            _PERSON,
            "Karpenter has died since the plan was approved, and the cluster file says `emergency`",
            "Bring Karpenter back and clear the task; or clear teardown.plan and what follows it, and approve the "
            "emergency.",
        ),
        Reason(
            "KarpenterDead",
            _PERSON,
            "no pod of Karpenter is Ready, so no controller would terminate the instances",
            "Bring Karpenter back and run the task again, or set teardown.whenKarpenterIsDead: emergency.",
            guide="teardown.md",
        ),
        Reason(
            "KarpenterStillNeeded",
            _PERSON,
            "NodePools, EC2NodeClasses or NodeOverlays of others exist, which need Karpenter",
            "Set teardown.uninstallKarpenter: false, or delete them first.",
            guide="teardown.md",
        ),
        Reason(
            "KarpenterTooOld",
            _PERSON,
            "this Karpenter ignores `limits.nodes`, and so the freeze of a teardown: each evicted pod would buy a node",
            "Upgrade Karpenter as the message says and run the task again.",
        ),
        Reason(
            "NotFrozen",
            _PERSON,
            "NodePools are not frozen, so evicted pods would buy new nodes",
            "Clear teardown.plan_again and what follows it.",
            guide="teardown.md",
        ),
        Reason(
            "DrainRefused",
            _PERSON,
            "pods must not be evicted; the message names each with its reason",
            "Let them end and clear teardown.plan; or start the run with the Param evictBarePods, or set drain.force.",
            guide="teardown.md",
        ),
        Reason(
            "OthersRemain",
            _PERSON,
            "an emergency has terminated what is ours, and instances of others, or of pools with `manage: false`, "
            "still run although their NodePools are being deleted or gone; without Karpenter no controller terminates "
            "them",
            "Bring Karpenter back, or have their owners terminate the named instances; then clear "
            "teardown.delete_node_pools and what follows it.",
        ),
        Reason(
            "NotTornDown",
            _PERSON,
            "no task failed, yet the leak check has shown nothing and the approval was not answered with Reject",
            "Clear teardown.leak_check to see what is left, or teardown.plan and what follows it to continue.",
        ),
        Reason(
            "LeaksUnchecked",
            _PERSON,
            "nothing was found, but AWS refused to list instances or volumes, which cost money",
            "Grant the named permissions, then clear teardown.leak_check.",
        ),
        Reason(
            "LeakFound",
            _PERSON,
            "something that costs money is left; the message names it with its price",
            "Delete it, then clear teardown.leak_check.",
        ),
    ),
)

GATES = Section(
    "Waits of a teardown",
    "tasks `teardown.…`, gates `pods_gone`, `nodeclaims_gone`, `nodes_gone`, `instances_gone` and `node_class_gone`",
    (
        Reason("PodsGone", _ON, "all pods that were evicted are gone"),
        Reason("PodsTerminating", _WAITS, "pods are terminating"),
        Reason(
            "EvictionBlocked",
            _WAITS,
            "PodDisruptionBudgets refuse evictions; the message names them. They are watched, and the eviction is "
            "retried when one changes",
        ),
        Reason("EvictionPossible", _ON, "a budget has changed and now allows an eviction"),
        Reason("NodeClaimsGone", _ON, "no NodeClaim and no node of a removed NodePool is left"),
        Reason("NodeClaimsRemain", _WAITS, "NodeClaims remain; the message says what each waits for"),
        Reason("NodesGone", _ON, "no node of a removed NodePool is left"),
        Reason("NodesRemain", _WAITS, "nodes of a removed NodePool remain"),
        Reason("InstancesGone", _ON, "no instance is left that was to be terminated"),
        Reason("InstancesRemain", _WAITS, "instances remain"),
        Reason(
            "InstancesOrphaned",
            _PERSON,
            "instances have no NodeClaim, and Karpenter has not removed them",
            "Terminate the instances, then run the task again.",
        ),
        Reason("NodeClassesGone", _ON, "no EC2NodeClass of ours is left"),
        Reason("NodeClassesRemain", _WAITS, "EC2NodeClasses remain; the message says what each waits for"),
    ),
)

PODS = Section(
    "Pods in a drain",
    "the plan and the report of a drain: tasks `teardown.drain_…` and the plan's table",
    (
        Reason("Evictable", Effect.POD_EVICTED, "its controller recreates the pod elsewhere"),
        Reason("Terminating", Effect.POD_LEFT, "the pod is terminating already; the drain waits for it"),
        Reason(
            "NodeNotReady",
            Effect.POD_LEFT,
            "the pod is a minute past its grace period, and its node is not Ready: it ends with the instance",
        ),
        Reason(
            "DaemonSetManaged",
            Effect.POD_LEFT,
            "a DaemonSet would recreate the pod at once; refused with `drain.ignoreDaemonSets: false`",
            "Set drain.ignoreDaemonSets: true to leave it.",
        ),
        Reason(
            "DaemonSetGone",
            Effect.POD_REFUSED,
            "the pod's DaemonSet no longer exists, so no controller recreates it",
            "Delete the pod or set drain.force.",
        ),
        Reason("MirrorPod", Effect.POD_LEFT, "the kubelet runs the pod from a file; the API cannot remove it"),
        Reason(
            "LocalStorage",
            Effect.POD_EVICTED,
            "the pod loses the data of its emptyDir volume; refused with `drain.deleteEmptyDirData: false`",
            "Set drain.deleteEmptyDirData: true to lose the data.",
        ),
        Reason(
            "AirflowTask",
            Effect.POD_REFUSED,
            "the pod works for an Airflow task and has no controller that recreates it",
            "Let the task end; or start the run with the Param evictBarePods, or set drain.force: true.",
        ),
        Reason(
            "Unreplicated",
            Effect.POD_REFUSED,
            "the pod has no controller that recreates it",
            "Let it end, or delete it; or start the run with the Param evictBarePods, or set drain.force: true.",
        ),
    ),
)
