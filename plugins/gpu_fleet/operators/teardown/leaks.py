"""The last step of a teardown: shows that nothing is left that costs money, or reports it with its price."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gpu_fleet.core.aws.errors import refuses_credentials
from gpu_fleet.core.errors import Forbidden, GpuFleetError, LeakFound, NotFound, PermanentError, TransientError
from gpu_fleet.core.kubernetes.kinds import EC2_NODE_CLASS, NODE, NODE_CLAIM, NODE_POOL, POD
from gpu_fleet.core.kubernetes.names import LABEL_COMPONENT, LABEL_NODE_POOL
from gpu_fleet.core.teardown.approval import ABOUT, about
from gpu_fleet.core.teardown.remains import tags_of
from gpu_fleet.operators.base import FleetOperator

if TYPE_CHECKING:
    from gpu_fleet.core.teardown.leak_check import Unchecked


class LeakCheckOperator(FleetOperator):
    """Asks EC2, IAM and the cluster what is left of the pools that were removed.

    The report is pushed as XCom ``report`` before the task fails, so that it can be read afterwards.

    :param plan_task_id: the task whose plan was carried out; ``about`` in the result names that plan, so that the
        check of an earlier teardown in the same run does not count for this one.
    :returns: ``{"leaks": [{"kind", "name", "detail", "usdPerHour"}], "checked", "unchecked": [{"subject", "why"}],
        "sentence", "about"}``; what the AWS identity may not list is *unchecked*, never taken as clean.
    :raises LeakFound: names each leak, its price and the remedy.
    :raises PermanentError: ``LeaksUnchecked`` if nothing was found, but AWS refused to list instances or volumes.
        Things without a price may stay unchecked: the sentence names them, and the run's verdict repeats it.
    :raises GpuFleetError: why the cluster could not be read and, if the cause may pass, what AWS has. The task never
        succeeds without the cluster: one that was deleted before its nodes leaves instances that only AWS knows.
    """

    def __init__(self, *, plan_task_id: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.plan_task_id = plan_task_id

    def act(self, context: Mapping[str, Any]) -> dict[str, Any]:
        # Here, so that a DAG file does not load what only its tasks need.
        from gpu_fleet.core.teardown.leak_check import clean_sentence, costly, unseen_message, words
        from gpu_fleet.core.teardown.leaks import find_leaks, leak_message
        from gpu_fleet.hooks.cluster.prices import prices_of_instances

        cluster = self.spec.cluster.name
        found, refused = self._observe_aws()
        unchecked = [each.to_json() for each in refused]
        unread: GpuFleetError | None = None
        try:
            found.update(self._observe_cluster())
        except GpuFleetError as error:
            unread = error
            unchecked.append({"subject": "cluster", "why": error.message})
        prices = prices_of_instances(
            self.spec, [*found.get("instances.owned", ()), *found.get("instances.claimed", ())]
        )
        leaks = find_leaks(self.spec, found, prices)
        report = {
            "leaks": [leak.to_json() for leak in leaks],
            "checked": sorted(found),
            "unchecked": unchecked,
        }
        context["ti"].xcom_push("report", report)
        for item in unchecked:
            self.log.warning("not checked: %s: %s", item["subject"], item["why"])
        message = leak_message(
            cluster, leaks, prices, unread=unread.message if unread else "", unchecked=words(refused)
        )
        if leaks and isinstance(unread, TransientError):
            # Transient: once the cluster can be read, what belongs to pools that remain is no leak.
            raise type(unread)(message, reason=unread.reason) from unread
        if leaks:
            raise LeakFound(message) from unread
        if unread is not None:
            raise unread
        if costly(refused):
            raise PermanentError(unseen_message(cluster, refused), reason="LeaksUnchecked")
        sentence = clean_sentence(cluster, refused)
        self.log.info("%s", sentence)
        plan = None if self.plan_task_id is None else context["ti"].xcom_pull(task_ids=self.plan_task_id)
        return {**report, "sentence": sentence, ABOUT: about(plan)}

    def _observe_aws(self) -> tuple[dict[str, list[dict[str, Any]]], list[Unchecked]]:
        """What AWS has, by subject; and the subjects that the identity is not allowed to see."""
        from gpu_fleet.core.teardown.leak_check import Unchecked
        from gpu_fleet.core.teardown.leaks import aws_queries
        from gpu_fleet.hooks.aws import aws_session

        session = aws_session(self.spec.aws.connection, self.spec.aws.region)
        found: dict[str, list[dict[str, Any]]] = {}
        unchecked: list[Unchecked] = []
        for query in aws_queries(self.spec.cluster.name):
            try:
                items = session.paginate(query.service, query.operation, query.path, **query.params)
                if query.key == "instance_profiles":
                    items = self._karpenters_profiles(session, items)
                found[query.key] = items
            except Forbidden as error:
                if refuses_credentials(error):
                    raise
                unchecked.append(Unchecked(query.key, error.message, error.cure))
        return found, unchecked

    def _karpenters_profiles(self, session: Any, profiles: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The instance profiles that Karpenter made for this cluster, with their tags (a list has none)."""
        from gpu_fleet.core.teardown.leaks import is_karpenters_profile, profile_candidates

        cluster, region = self.spec.cluster.name, self.spec.aws.region
        result = []
        for name in profile_candidates(profiles, region, cluster):
            try:
                tags = session.paginate("iam", "get_instance_profile", "InstanceProfile.Tags", InstanceProfileName=name)
            except NotFound:
                continue
            item = {"InstanceProfileName": name, "Tags": tags}
            if is_karpenters_profile(tags_of(item), region, cluster):
                result.append(item)
        return result

    def _observe_cluster(self) -> dict[str, list[dict[str, Any]]]:
        return {
            "node_pools": self.kube.list(NODE_POOL),
            "node_claims": self.kube.list(NODE_CLAIM),
            "nodes": self.kube.list(NODE, label_selector=LABEL_NODE_POOL),
            "node_classes": self.kube.list(EC2_NODE_CLASS),
            "own_pods": self.kube.list(POD, label_selector=LABEL_COMPONENT),
        }
