"""Reasons of a run itself: the cluster lock, the spec, drift, gates that cannot look, and the types of errors."""

from __future__ import annotations

from gpu_fleet.core.reasons.reason import Effect, Reason, Section

_WAITS, _RETRIED, _PERSON, _ON = Effect.WAITS, Effect.RETRIED, Effect.PERSON, Effect.GOES_ON

RUNS = Section(
    "Runs",
    "tasks of every DAG; the gate `turn_free`",
    (
        Reason("TurnFree", _ON, "the cluster lock is free"),
        Reason("Recheck", _ON, "it is time to ask Airflow whether the holder of the cluster lock still runs"),
        Reason(
            "ClusterBusy",
            _WAITS,
            "another run holds the cluster lock, or a release's Lease; the message names the holder. A revalidation "
            "is skipped",
            "Nothing to do while the holder runs; the next run tries again.",
            guide="revalidation.md",
        ),
        Reason("NeverAsked", _ON, "the run ended before it had asked for the cluster lock"),
        Reason(
            "DagOutdated",
            _RETRIED,
            "the DAG was built from the spec of a run that has recorded no end (it was deleted, or its workers were "
            "lost), and the next try continues; or the DAG processor has not read the cluster file since it was edited",
            "Check whether the DAG processor runs, then start another run.",
            guide="cluster-files.md#changing-a-cluster-file-while-a-run-is-under-way",
        ),
        Reason(
            "ConnectionUnreadable",
            _WAITS,
            "Airflow does not hand out a connection, so it is not known whose account a session is of",
            "Check Airflow's API server and secrets backend, and that the connection exists.",
        ),
        Reason(
            "NotAllowedHere",
            _PERSON,
            "the cluster file names a notifier, an Airflow connection or a kubeconfig that this deployment forbids",
            "Add it to the deployment's variable that the message names, or use an allowed one.",
            guide="deploy.md#who-is-trusted-with-what",
        ),
        Reason(
            "RunFailed",
            _PERSON,
            "tasks of the run failed; in JUnit reports",
            "Open the run: the first failed task's log names the cause.",
        ),
        Reason(
            "Drifted",
            _PERSON,
            "the cluster is not what the spec says; the message and the report list the differences",
            "Apply the spec again with gpu_lifecycle, or change the spec to what exists.",
            guide="revalidation.md#drift",
        ),
        Reason(
            "DriftUnknown",
            _PERSON,
            "some objects could not be read, so whether they differ is not known",
            "Check the permissions of the role that Airflow uses.",
            guide="revalidation.md#drift",
        ),
    ),
)

LEFT_DRIFTED = Section(
    "Drifted nodes that are left",
    "task `replace_drifted` of gpu_lifecycle, and reports",
    (
        Reason(
            "TurnLater",
            Effect.NODE_LEFT,
            "the run has replaced as many nodes as it may",
            "The next run with replaceDrifted continues.",
        ),
        Reason(
            "NoRoom",
            Effect.NODE_LEFT,
            "`limits.nodes` leaves no room for the node that would have to come first",
            "Raise limits.nodes.",
        ),
        Reason(
            "NotProven",
            Effect.NODE_LEFT,
            "too few proven nodes would stay",
            "Look at what kept the replacement from passing, then run again.",
        ),
        Reason(
            "OutOfService",
            Effect.NODE_LEFT,
            "the node is cordoned or quarantined",
            "Ask the person who cordoned it, or wait until it is released.",
        ),
        Reason("Gone", Effect.NODE_LEFT, "the node no longer exists"),
    ),
)

GATES = Section(
    "Waits in general",
    "any task that waits; gates `object_exists`, `object_gone` and `probes_finished`",
    (
        Reason("ObjectExists", _ON, "the object exists"),
        Reason("ObjectGone", _ON, "the object is gone"),
        Reason("NotFound", _WAITS, "the object does not exist yet"),
        Reason("NoObjects", _WAITS, "no object was named"),
        Reason("NotDeleted", _WAITS, "the object exists, and its deletion was never requested"),
        Reason("Terminating", _WAITS, "the object is being deleted"),
        Reason(
            "WaitingForFinalizers",
            _WAITS,
            "the object is being deleted and waits for the finalizers that the message names",
        ),
        Reason("ProbesSettled", _ON, "the probes are over"),
        Reason("ProbesDisplaced", _ON, "users' pods took the place of probes; the others on these nodes are ended"),
        Reason("ProbesPending", _WAITS, "probes have no place on their node yet"),
        Reason("ProbesStarting", _WAITS, "the probes' containers are being created"),
        Reason("ProbesRunning", _WAITS, "probes are running"),
        Reason("ProbesAbsent", _WAITS, "there is no probe pod yet"),
        Reason("ProbesVanished", _RETRIED, "all probe pods were deleted; the next try creates them again"),
        Reason("NothingToWaitFor", _WAITS, "no probe was planned on any node"),
        Reason(
            "GateBroken",
            _PERSON,
            "the gate cannot look: another version of the package, or an error of its own",
            "Check that workers and triggerers have the same version of the package; the message has the error.",
        ),
        Reason("ObserverBroken", _RETRIED, "what the gate looks at could not be read; the message has the error"),
        Reason("WatchBroken", _WAITS, "the connection of a watch broke; the list is read again"),
        Reason("Expired", _WAITS, "a watch's resourceVersion is too old; the list is read again"),
    ),
)

ACCESS = Section(
    "Access to the cluster",
    "tasks that read or change objects of the cluster. Kubernetes' own reasons (`Forbidden`, `Conflict`, …) are passed "
    "on",
    (
        Reason(
            "NoKubeconfig", _PERSON, "the kubeconfig of `cluster.access` does not exist", "Check cluster.access.path."
        ),
        Reason(
            "NoKindMatch",
            _PERSON,
            "the API server has no such kind",
            "Install the CustomResourceDefinition first.",
        ),
        Reason(
            "FieldManagerConflict",
            _RETRIED,
            "another field manager owns a field",
            "Undo its change, or set conflicts to 'force'.",
        ),
        Reason(
            "NamespaceTerminating",
            _RETRIED,
            "the namespace is being deleted",
            "Run again when it is gone.",
        ),
        Reason(
            "DisruptionBudget",
            _RETRIED,
            "a PodDisruptionBudget forbids the eviction of a pod now",
            "Wait until its other pods are ready, or relax the budget that the message names.",
        ),
        Reason(
            "SeveralDisruptionBudgets",
            _PERSON,
            "several PodDisruptionBudgets select a pod, which the Eviction API does not support",
            "Delete one of the budgets, or change its selector.",
        ),
    ),
)

#: The reasons of errors that were given none: the names of the classes in ``core/errors.py``.
ERRORS = Section(
    "Types of errors",
    "any task; the reason of an error that has no closer one is the name of its type",
    (
        Reason("GpuFleetError", _PERSON, "an error without a type", "Read the message."),
        Reason("TransientError", _RETRIED, "a retry may succeed"),
        Reason("PermanentError", _PERSON, "a retry cannot help", "Do what the message says, then clear the task."),
        Reason("ApiUnavailable", _RETRIED, "an API did not answer: connection refused or reset, time-out, 5xx"),
        Reason("Throttled", _RETRIED, "an API answered 429"),
        Reason("Unauthorized", _RETRIED, "an API answered 401: a token has expired, or is not accepted yet",
               "If it stays so, check that the identity has an EKS access entry."),
        Reason("Conflict", _RETRIED, "an object was changed in between (409)"),
        Reason("AlreadyExists", _RETRIED, "an object that was to be created exists"),
        Reason("FieldConflict", _RETRIED, "another field manager owns a field",
               "Undo its change, or set conflicts to 'force'."),
        Reason("GateFailed", _RETRIED, "a wait has failed for a cause that may pass"),
        Reason("SpecError", _PERSON, "a cluster file, a Param or an operator argument is wrong",
               "Correct the field that the message names."),
        Reason("Forbidden", _PERSON, "an API answered 403: a missing permission, a quota or an admission rule",
               "Do what the message says: a grant, or a change where no grant helps."),
        Reason("Invalid", _PERSON, "an API refuses the content (400, 415, 422)", "Correct what the message names."),
        Reason("ToolError", _PERSON, "helm or kubectl is missing or of an unsupported version", "Install it."),
        Reason("ReleaseError", _PERSON, "a Helm release needs a person", "Read the message.",
               guide="helm-releases.md"),
        Reason("ValidationFailed", _PERSON, "GPUs do not do what the spec promises", "See the report of the run."),
        Reason("DriftFound", _PERSON, "the cluster is not what the spec says", "See the report of the run."),
        Reason("GateRefused", _PERSON, "a wait has failed for a permanent cause", "Do what the message says."),
        Reason("GateBlind", _PERSON, "a wait could not look, so nothing is known about the objects",
               "Read the message: a permission, another version of the package, or an API that did not answer."),
        Reason("DeadlinePassed", _PERSON, "a wait's deadline has passed; the message says what was missing and why",
               "Remove the cause, then clear the task; a cleared task has a new deadline."),
    ),
)  # fmt: skip
