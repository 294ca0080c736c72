from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core.spec import SpecErrors, version_tuple
from gpu_fleet.core.spec.rules import FIRST_WITH_NODE_LIMITS, OLDEST_KARPENTER, RULES
from tests.unit.core.specs import demo_spec

TWO_OF_A_NAME = [
    {"name": "gpu", "instanceTypes": ["g5.xlarge"]},
    {"name": "gpu", "instanceTypes": ["g5.2xlarge"]},
]
TAINT = {"key": "nvidia.com/gpu", "value": "true", "effect": "NoSchedule"}

#: situation -> changes, field, part of the message, part of the remedy
BROKEN: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "one replica": (
        {"nodePools__0__sharing__replicas": 1},
        "nodePools[0].sharing.replicas",
        "not sharing",
        "2 or more",
    ),
    "no replica": ({"nodePools__0__sharing__replicas": 0}, "nodePools[0].sharing.replicas", "not sharing", "2 or more"),
    "rename without overlay": (
        {"nodePools__0__sharing__renameByDefault": True},
        "nodePools[0].sharing.renameByDefault",
        "NodeOverlay",
        "false",
    ),
    "Bottlerocket before it could share": (
        {"nodePools__0__amiAlias": "bottlerocket@v1.20.0"},
        "nodePools[0].amiAlias",
        "cannot share GPUs, as pool shared-a10g",
        "1.25.0 or later",
    ),
    "Bottlerocket before it could share, for all pools": (
        {"nodeClass__amiAlias": "bottlerocket@1.20.0"},
        "nodeClass.amiAlias",
        "shared-a10g",
        "1.25.0 or later",
    ),
    "Bottlerocket with MPS": (
        {"nodePools__0__amiAlias": "bottlerocket@1.60.0", "nodePools__0__sharing": {"mode": "mps", "replicas": 4}},
        "nodePools[0].sharing.mode",
        "MPS daemon of Bottlerocket is a service of the host",
        "timeSlicing",
    ),
    "latest AMI": ({"nodeClass__amiAlias": "al2023@latest"}, "nodeClass.amiAlias", "drift", "al2023@v"),
    "latest AMI of a pool": ({"nodePools__0__amiAlias": "al2023@latest"}, "nodePools[0].amiAlias", "drift", "pin"),
    "AMI family without GPU": ({"nodeClass__amiAlias": "windows2022@v1"}, "nodeClass.amiAlias", "only al2023", ""),
    "AMI id instead of an alias": ({"nodeClass__amiAlias": "ami-0123"}, "nodeClass.amiAlias", "not an AMI alias", ""),
    "two pools of a name": ({"nodePools": TWO_OF_A_NAME}, "nodePools[1].name", "already", "own name"),
    "no pool": ({"nodePools": []}, "nodePools", "empty", "at least one"),
    "no instance type": ({"nodePools__0__instanceTypes": []}, "nodePools[0].instanceTypes", "empty", "at least one"),
    "no owner": ({"owners": []}, "owners", "empty", "at least one"),
    "an instance type twice": (
        {"nodePools__0__instanceTypes": ["g5.xlarge", "g5.xlarge"]},
        "nodePools[0].instanceTypes",
        "duplicate entry 'g5.xlarge'",
        "remove one",
    ),
    "mixed GPU counts": (
        {"nodePools__0__instanceTypes": ["g5.xlarge", "g5.12xlarge"]},
        "nodePools[0].instanceTypes",
        "g5.12xlarge 4",
        "one pool",
    ),
    "mixed GPU counts beside an unknown one": (
        {"nodePools__0__instanceTypes": ["g9.xlarge", "g5.xlarge", "g5.12xlarge"]},
        "nodePools[0].instanceTypes",
        "(g5.xlarge 1, g5.12xlarge 4)",
        "one pool",
    ),
    "not NVIDIA": ({"nodePools__0__instanceTypes": ["g4ad.xlarge"]}, "nodePools[0].instanceTypes[0]", "AMD", "NVIDIA"),
    "no instance type at all": (
        {"nodePools__0__instanceTypes": ["large"]},
        "nodePools[0].instanceTypes[0]",
        "is not a single instance type",
        "for example g5.xlarge",
    ),
    "limit below wanted": (
        {"nodePools__0__limits": {"nodes": 1}},
        "nodePools[0].limits.nodes",
        "less than",
        "at least 2",
    ),
    "negative wanted nodes": ({"nodePools__0__wantedNodes": -1}, "nodePools[0].wantedNodes", "-1", ""),
    "unsupported Kubernetes": ({"cluster__version": "1.29"}, "cluster.version", "1.29", "1.36"),
    "future Kubernetes": ({"cluster__version": "1.99"}, "cluster.version", "1.99", "one of"),
    "unquoted version": ({"cluster__version": 1.35}, "cluster.version", "number in YAML", "quotes"),
    "Karpenter too old": ({"karpenter__chart__version": "1.8.9"}, "karpenter.chart.version", "1.35", "1.11"),
    "Karpenter that overshoots limits": (
        {"karpenter__chart__version": "1.10.2"},
        "karpenter.chart.version",
        "limits.nodes",
        "1.11",
    ),
    "Karpenter that overshoots limits, on an old Kubernetes": (
        {"cluster__version": "1.30", "karpenter__chart__version": "1.0.0"},
        "karpenter.chart.version",
        "limits.nodes",
        "1.11",
    ),
    "a policy that Karpenter does not know yet": (
        {
            "karpenter__chart__version": "1.13.4",
            "nodePools__1__disruption": {"consolidationPolicy": "Balanced", "consolidateAfter": "5m"},
        },
        "nodePools[1].disruption.consolidationPolicy",
        "1.13.4 does not know 'Balanced'",
        "1.14",
    ),
    "reserved capacity without reservations": (
        {"nodePools__0__capacityTypes": ["on-demand", "reserved"]},
        "nodePools[0].capacityTypes",
        "no capacity reservation",
        "name reservations in capacityReservations",
    ),
    "expireAfter of nothing": ({"nodePools__0__expireAfter": "0h0s"}, "nodePools[0].expireAfter", "at once", "720h"),
    "AMI alias too long": (
        {"nodeClass__amiAlias": f"al2023@v{'2' * 23}"},
        "nodeClass.amiAlias",
        "31 characters",
        "family@version",
    ),
    "tag key too long": ({"nodeClass__tags": {"k" * 129: "x"}}, "nodeClass.tags", "129 characters", "1 to 128"),
    "tag without a key": ({"nodeClass__tags": {"": "x"}}, "nodeClass.tags", "0 characters", "1 to 128"),
    "tag value too long": ({"nodeClass__tags": {"k": "x" * 257}}, "nodeClass.tags", "257 characters", "at most 256"),
    "label of each node": (
        {"nodePools__0__labels": {"kubernetes.io/hostname": "x"}},
        "nodePools[0].labels",
        "restricted",
        "remove kubernetes.io/hostname",
    ),
    "label key with a space": ({"nodePools__0__labels": {"a team": "x"}}, "nodePools[0].labels", "'a team'", "letters"),
    "label key without a name": ({"nodePools__0__labels": {"a.io/": "x"}}, "nodePools[0].labels", "''", "letters"),
    "label key too long": ({"nodePools__0__labels": {"k" * 64: "x"}}, "nodePools[0].labels", "kkk", "63"),
    "label key with line break": ({"nodePools__0__labels": {"team\n": "x"}}, "nodePools[0].labels", "'team", "letters"),
    "label domain with line break": (
        {"nodePools__0__labels": {"a.io\n/x": "x"}},
        "nodePools[0].labels",
        "before the '/'",
        "example.com/x",
    ),
    "label domain that is none": (
        {"nodePools__0__labels": {"Team_A/x": "x"}},
        "nodePools[0].labels",
        "'Team_A' before the '/'",
        "example.com/x",
    ),
    "label value that is none": ({"nodePools__0__labels": {"team": "a b"}}, "nodePools[0].labels", "'a b'", "letters"),
    "label value too long": ({"nodePools__0__labels": {"team": "x" * 64}}, "nodePools[0].labels", "xxx", "63"),
    "taint key that is none": (
        {"nodePools__0__taints": [{**TAINT, "key": "not a key"}]},
        "nodePools[0].taints[0].key",
        "'not a key'",
        "letters",
    ),
    "taint value that is none": (
        {"nodePools__0__taints": [{**TAINT, "value": "-"}]},
        "nodePools[0].taints[0].value",
        "'-'",
        "letters",
    ),
    "chart version range": (
        {"devicePlugin__chart__version": "0.20.x"},
        "devicePlugin.chart.version",
        "pin",
        "major.minor.patch",
    ),
    "chart version tilde": (
        {"karpenter__chart__version": "~1.14.0"},
        "karpenter.chart.version",
        "pin",
        "major.minor.patch",
    ),
    "chart version latest": (
        {"karpenter__chart__version": "latest"},
        "karpenter.chart.version",
        "pin",
        "major.minor.patch",
    ),
    "chart version as a number": (
        {"devicePlugin__chart__version": 0.20},
        "devicePlugin.chart.version",
        "number",
        "quotes",
    ),
    "malformed digest": ({"devicePlugin__chart__digest": "abc"}, "devicePlugin.chart.digest", "abc", "sha256"),
    "expireAfter in days": ({"nodePools__0__expireAfter": "1d"}, "nodePools[0].expireAfter", "Go syntax", "24h"),
    "name with capitals": ({"name": "Demo"}, "name", "DNS-1123", ""),
    "pool name too long": ({"nodePools__0__name": "p" * 64}, "nodePools[0].name", "64 characters", ""),
    "EKS name too long": ({"cluster__name": "c" * 101}, "cluster.name", "100", ""),
    "queue name too long": (
        {"karpenter__interruptionQueue": "q" * 81},
        "karpenter.interruptionQueue",
        "not the name of an SQS queue",
        "at most 80",
    ),
    "role ARN instead of name": (
        {"nodeClass__role": "arn:aws:iam::1:role/x"},
        "nodeClass.role",
        "is the role's ARN",
        "write the role's name, x",
    ),
    "bad region": ({"aws__region": "Oregon"}, "aws.region", "Oregon", "write its code, for example us-west-2"),
    "reserved tag": ({"nodeClass__tags": {"karpenter.sh/nodepool": "x"}}, "nodeClass.tags", "reserved", "another key"),
    "tag that begins like a cluster's": (
        {"nodeClass__tags": {"kubernetes.io/cluster-autoscaler": "x"}},
        "nodeClass.tags",
        "reserved",
        "another key",
    ),
    "tag of AWS in capitals": ({"nodeClass__tags": {"AWS:team": "x"}}, "nodeClass.tags", "reserved", "another key"),
    "tag that gpu-fleet sets": (
        {"nodeClass__tags": {"gpu-fleet.io/pool": "x"}},
        "nodeClass.tags",
        "set by gpu-fleet",
        "another key",
    ),
    "more tags than Karpenter's and ours leave": (
        {"nodeClass__tags": {f"k{i}": "x" for i in range(43)}},
        "nodeClass.tags",
        "42",
        "",
    ),
    "duplicate taint": (
        {"nodePools__0__taints": [TAINT, {**TAINT, "value": "x"}]},
        "nodePools[0].taints[1]",
        "duplicate",
        "",
    ),
    "label of a restricted domain": (
        {"nodePools__0__labels": {"karpenter.sh/foo": "x"}},
        "nodePools[0].labels",
        "restricted",
        "remove",
    ),
    "label of a restricted subdomain": (
        {"nodePools__0__labels": {"a.karpenter.sh/foo": "x"}},
        "nodePools[0].labels",
        "restricted",
        "remove",
    ),
    "label that sharing decides": (
        {"nodePools__0__labels": {"nvidia.com/device-plugin.config": "x"}},
        "nodePools[0].labels",
        "sharing",
        "set sharing",
    ),
    "budget without duration": (
        {"nodePools__0__disruption__budgets": [{"nodes": "1", "schedule": "0 0 * * *"}]},
        "nodePools[0].disruption.budgets[0]",
        "'schedule' must be set with 'duration'",
        "both",
    ),
    "budget with seconds": (
        {"nodePools__0__disruption__budgets": [{"nodes": "1", "schedule": "@daily", "duration": "90s"}]},
        "nodePools[0].disruption.budgets[0].duration",
        "'90s'",
        "1h30m",
    ),
    "budget that is no cron": (
        {"nodePools__0__disruption__budgets": [{"nodes": "1", "schedule": "foo", "duration": "8h"}]},
        "nodePools[0].disruption.budgets[0].schedule",
        "'foo' is not a cron expression",
        "five fields",
    ),
    "budget at an hour that does not exist": (
        {"nodePools__0__disruption__budgets": [{"nodes": "1", "schedule": "0 24 * * *", "duration": "8h"}]},
        "nodePools[0].disruption.budgets[0].schedule",
        "'24' as no hour",
        "0 to 23",
    ),
    "budget on the last day of the month": (
        {"nodePools__0__disruption__budgets": [{"nodes": "1", "schedule": "0 0 L * *", "duration": "8h"}]},
        "nodePools[0].disruption.budgets[0].schedule",
        "'L' as no day of month",
        "1 to 31",
    ),
    "budget on Sunday as the seventh day": (
        {"nodePools__0__disruption__budgets": [{"nodes": "1", "schedule": "0 0 * * 1-7", "duration": "8h"}]},
        "nodePools[0].disruption.budgets[0].schedule",
        "'1-7' as no day of week",
        "0 to 6",
    ),
    "budget with a step of nothing": (
        {"nodePools__0__disruption__budgets": [{"nodes": "1", "schedule": "*/0 * * * *", "duration": "8h"}]},
        "nodePools[0].disruption.budgets[0].schedule",
        "'*/0' as no minute",
        "0 to 59",
    ),
    "setting that contradicts": (
        {"karpenter__settings": {"clusterName": "other"}},
        "karpenter.settings.clusterName",
        "contradicts",
        "remove",
    ),
    "drain longer than its deadline": ({"drain__timeout": "1h"}, "drain.timeout", "1h", "deadlines.drain"),
    "deadline of nothing": ({"deadlines__capacity": "0s"}, "deadlines.capacity", "must be longer than 0s", "5m"),
    "foreign pool, own Karpenter removed": (
        {"nodePools__0__manage": False},
        "teardown.uninstallKarpenter",
        "shared-a10g",
        "uninstallKarpenter: false",
    ),
    "one MPS replica": (
        {"nodePools__0__sharing": {"mode": "mps", "replicas": 1}},
        "nodePools[0].sharing.replicas",
        "not sharing",
        "2 or more",
    ),
    "more MPS clients than a server serves": (
        {"nodePools__0__sharing": {"mode": "mps", "replicas": 49}},
        "nodePools[0].sharing.replicas",
        "48",
        "",
    ),
    "two shares under MPS": (
        {"nodePools__0__sharing": {"mode": "mps", "replicas": 4, "failRequestsGreaterThanOne": False}},
        "nodePools[0].sharing.failRequestsGreaterThanOne",
        "refuses",
        "remove it",
    ),
    "MPS renamed without overlay": (
        {"nodePools__0__sharing": {"mode": "mps", "replicas": 4, "renameByDefault": True}},
        "nodePools[0].sharing.renameByDefault",
        "NodeOverlay",
        "false",
    ),
    "a sharing that does not exist": ({"nodePools__0__sharing__mode": "mig"}, "nodePools[0].sharing", "'mig'", "'mps'"),
    "label that MPS decides": (
        {"nodePools__0__labels": {"nvidia.com/mps.capable": "true"}},
        "nodePools[0].labels",
        "sharing",
        "set sharing",
    ),
    "an empty sample": ({"validation__nodes__sample": 0}, "validation.nodes.sample", "0", ""),
    "no node at once": ({"validation__nodes__atOnce": 0}, "validation.nodes.atOnce", "0", ""),
    "a DCGM level that does not exist": ({"validation__probes__dcgm": 5}, "validation.probes.dcgm", "5", "1, 2 or 3"),
    "a diagnostic longer than its deadline": (
        {"validation__probes__dcgm": 3},
        "validation.probes.dcgm",
        "deadlines.validation 15m",
        "26m",
    ),
    "a measurement of nothing": (
        {"validation__throughput__duration": "0s"},
        "validation.throughput.duration",
        "must be longer than 0s",
        "10s",
    ),
    "a measurement longer than its deadline": (
        {"validation__throughput__duration": "8m"},
        "validation.throughput.duration",
        "once alone",
        "raise deadlines.validation",
    ),
    "sharers that start too far apart for the deadline": (
        {"validation__overlap": "8m"},
        "validation.throughput.duration",
        "validation.overlap 8m",
        "raise deadlines.validation",
    ),
    "an overlap longer than its deadline": (
        {"validation__overlap": "15m", "validation__probes__throughput": False},
        "validation.overlap",
        "deadlines.validation 15m",
        "raise deadlines.validation",
    ),
    "a total of nothing": (
        {"validation__throughput__minimumTotal": 0},
        "validation.throughput.minimumTotal",
        "greater than 0",
        "",
    ),
    "a tolerance of everything": (
        {"validation__throughput__tolerance": 1},
        "validation.throughput.tolerance",
        "less than 1",
        "",
    ),
    "a driver that is a number": (
        {"validation__minimumDriver": 570.10},
        "validation.minimumDriver",
        "number",
        "quotes",
    ),
    "a driver that is no version": (
        {"validation__minimumDriver": "new"},
        "validation.minimumDriver",
        "'new'",
        "one to three numbers",
    ),
    "a policy that does not exist": (
        {"validation__onFailure__policy": "reboot"},
        "validation.onFailure.policy",
        "'reboot'",
        "'replace'",
    ),
    "a budget of nothing": ({"validation__onFailure__budget": 0}, "validation.onFailure.budget", "0", ""),
    "the label of the plugin's config, which is ours": (
        {"nodePools__0__labels": {"nvidia.com/device-plugin.config": "mine"}},
        "nodePools[0].labels",
        "follows from the pool's sharing",
        "set sharing",
    ),
    "a label of ours": (
        {"nodePools__0__labels": {"gpu-fleet.io/device-plugin": "false"}},
        "nodePools[0].labels",
        "set by the package itself",
        "remove",
    ),
    "a neighbour without its namespace": (
        {"devicePlugin__coexistsWith": ["fuse"]},
        "devicePlugin.coexistsWith[0]",
        "",
        "",
    ),
    "replacing nodes of others": (
        {
            "validation__onFailure__policy": "replace",
            "nodePools__0__manage": False,
            "teardown__uninstallKarpenter": False,
        },
        "validation.onFailure.policy",
        "shared-a10g",
        "quarantine",
    ),
    "overdue without a schedule": (
        {"validation__overdueAfter": "1h"},
        "validation.overdueAfter",
        "without a schedule",
        "set schedule",
    ),
    "overdue at once": (
        {"validation__overdueAfter": "0s", "schedule": "@daily"},
        "validation.overdueAfter",
        "must be longer than 0s",
        "2h",
    ),
    "a notifier without a module": (
        {"validation__notify": [{"notifier": "SlackNotifier"}]},
        "validation.notify[0].notifier",
        "not the import path of a class",
        "module and class",
    ),
    "a path in the role's ARN": (
        {"nodeClass__role": "arn:aws-us-gov:iam::123456789012:role/teams/gpu/KarpenterNodeRole"},
        "nodeClass.role",
        "is the role's ARN",
        "write the role's name, KarpenterNodeRole",
    ),
    "an instance profile instead of a role": (
        {"nodeClass__role": "arn:aws:iam::123456789012:instance-profile/X"},
        "nodeClass.role",
        "is an instance profile",
        "name of the role in it",
    ),
    "a role with a letter that IAM does not know": (
        {"nodeClass__role": "Größe"},
        "nodeClass.role",
        "not the name of an IAM role",
        "at most 64",
    ),
    "queue ARN instead of name": (
        {"karpenter__interruptionQueue": "arn:aws:sqs:us-west-2:123456789012:demo-gpu"},
        "karpenter.interruptionQueue",
        "is the queue's ARN",
        "write the queue's name, demo-gpu",
    ),
    "queue URL instead of name": (
        {"karpenter__interruptionQueue": "https://sqs.us-west-2.amazonaws.com/123456789012/demo-gpu"},
        "karpenter.interruptionQueue",
        "is the queue's URL",
        "write the queue's name, demo-gpu",
    ),
    "a wildcard of instance types": (
        {"nodePools__0__instanceTypes": ["gr6.*"]},
        "nodePools[0].instanceTypes[0]",
        "is not a single instance type",
        "[gr6.4xlarge, gr6.8xlarge] or some of them",
    ),
    "a family of instance types": (
        {"nodePools__0__instanceTypes": ["p4d"]},
        "nodePools[0].instanceTypes[0]",
        "is not a single instance type",
        "[p4d.24xlarge]",
    ),
    "cluster ARN instead of name": (
        {"cluster__name": "arn:aws:eks:us-west-2:123456789012:cluster/demo-gpu"},
        "cluster.name",
        "is the cluster's ARN",
        "write its name, demo-gpu",
    ),
    "an availability zone instead of a region": (
        {"aws__region": "us-west-2a"},
        "aws.region",
        "is an availability zone",
        "write its region, us-west-2",
    ),
    "a patch release of Kubernetes": (
        {"cluster__version": "1.35.1"},
        "cluster.version",
        "not a Kubernetes version",
        '"1.35"',
    ),
    "a budget of half a node": (
        {"nodePools__0__disruption__budgets": [{"nodes": "0.5"}]},
        "nodePools[0].disruption.budgets[0].nodes",
        "not a number of nodes",
        '"10%"',
    ),
    "a repository with a slash at its end": (
        {"karpenter__chart__repository": "oci://example.com/karpenter/"},
        "karpenter.chart.repository",
        "ends with a slash",
        "write oci://example.com/karpenter",
    ),
    "a repository that is a host": (
        {"devicePlugin__chart__repository": "example.com/charts"},
        "devicePlugin.chart.repository",
        "not the address of a chart repository",
        "oci://",
    ),
    "a duration beyond Go's": (
        {"nodePools__0__expireAfter": "2562048h"},
        "nodePools[0].expireAfter",
        "longer than Go's durations",
        "720h",
    ),
    "a duration of more digits than can be read": (
        {"nodePools__0__expireAfter": f"{'9' * 5000}h"},
        "nodePools[0].expireAfter",
        "longer than Go's durations",
        "720h",
    ),
    "a wait of more than a year": ({"deadlines__approval": "8785h"}, "deadlines.approval", "than a year", "24h"),
    "more instance types than make sense": (
        {"nodePools__0__instanceTypes": ["g5.xlarge"] * 101},
        "nodePools[0].instanceTypes",
        "101 entries",
        "at most 100",
    ),
    "plugin in namespace default": ({"devicePlugin__namespace": "default"}, "devicePlugin.namespace", "refuses", ""),
}


@pytest.mark.parametrize("situation", BROKEN)
def test_a_broken_rule_names_field_and_remedy(situation: str) -> None:
    changes, field, message, remedy = BROKEN[situation]
    with pytest.raises(SpecErrors) as caught:
        demo_spec(**changes)
    problem = caught.value.problems[0]
    assert problem.field == field
    assert message in problem.message
    assert remedy in problem.remedy


@pytest.mark.parametrize(
    "changes",
    [
        {"nodeClass__amiAlias": "bottlerocket@1.60.0", "devicePlugin__manage": False},
        {"nodeClass__amiAlias": "bottlerocket@1.60.0"},
        {"nodePools__1__amiAlias": "bottlerocket@1.20.0"},
        {"nodePools__0__manage": False, "teardown__uninstallKarpenter": False},
        {"nodePools__0__manage": False, "karpenter__manage": False},
        {"nodePools__0__labels": {"nvidia.com/device-plugin.config": "theirs"}, "devicePlugin__manage": False},
        {"nodePools__0__labels": {"nvidia.com/gpu.deploy.operands": "false"}},
        {"devicePlugin__coexistsWith": ["kube-system/fuse-device-plugin"]},
        {"nodePools__0__instanceTypes": ["g5.xlarge", "g5.2xlarge", "g6.xlarge"]},
        {"nodePools__0__instanceTypes": ["g9.xlarge"]},
        {"nodePools__0__expireAfter": "Never"},
        {"nodePools__0__expireAfter": "2562047h"},
        {"deadlines__approval": "8784h"},
        *(
            {"aws__region": region}
            for region in (
                "us-gov-west-1",
                "cn-north-1",
                "ap-southeast-7",
                "mx-central-1",
                "eusc-de-east-1",
                "us-iso-east-1",
                "us-isob-east-1",
                "eu-isoe-west-1",
                "us-isof-south-1",
            )
        ),
        {"nodePools__0__wantedNodes": 0, "nodePools__0__limits": {"nodes": 0}},
        *(
            {"nodePools__0__disruption__budgets": [{"nodes": "1", "schedule": schedule, "duration": duration}]}
            for schedule, duration in (
                ("0 22 * * mon-fri", "10h"),
                ("*/15 0,12 1-7/2 Jan ?", "1h30m"),
                ("@midnight", "90m0s"),
            )
        ),
        {"karpenter__settings": {"clusterName": "demo-gpu", "featureGates": {"spotToSpotConsolidation": True}}},
        {"nodePools__0__taints": []},
        {"nodePools__0__taints": [{"key": f"{'d' * 63}.io/{'k' * 63}", "effect": "NoExecute"}]},
        {"nodePools__0__labels": {"team": "", "example.com/Team_1.x": "A-1", "k" * 63: "v" * 63}},
        {"nodeClass__tags": {"k" * 128: "v" * 256}},
        {"nodeClass__tags": {"karpenter.sh/discovery": "demo", "eks:team": "a", "karpenter.k8s.aws/cost": "b"}},
        {"nodeClass__tags": {f"k{i}": "x" for i in range(42)}},
        # Whether the unknown one has as many GPUs, EC2 says.
        {"nodePools__0__instanceTypes": ["g9.xlarge", "g5.xlarge"]},
        {"nodePools__0__instanceTypes": ["g5g.xlarge", "g5.xlarge"]},
        {"nodeClass__amiAlias": f"al2023@v{'2' * 22}"},
        {"nodePools__0__disruption": {"consolidationPolicy": "Balanced", "consolidateAfter": "0s"}},
        {
            "nodePools__0__manage": False,
            "teardown__uninstallKarpenter": False,
            "nodePools__0__capacityTypes": ["reserved"],
        },
        {"nodePools__0__sharing": {"mode": "mps", "replicas": 48, "failRequestsGreaterThanOne": True}},
        {"validation__nodes": {"sample": 2, "atOnce": 1}},
        {"validation__probes__dcgm": 3, "deadlines__validation": "30m"},
        {"validation__throughput__duration": "10m", "validation__probes__throughput": False},
        {"validation__minimumDriver": "570.133.20"},
        {"validation__overdueAfter": "2h", "schedule": "0 6 * * *"},
        {"validation__onFailure": {"policy": "replace", "budget": 2}},
        {"validation__notify": [{"notifier": "airflow.providers.slack.notifications.slack.SlackNotifier"}]},
    ],
)
def test_what_is_allowed_passes(changes: dict[str, Any]) -> None:
    demo_spec(**changes)


@pytest.mark.parametrize(("kubernetes", "oldest"), OLDEST_KARPENTER.items())
def test_the_oldest_karpenter_of_each_kubernetes_passes(kubernetes: str, oldest: str) -> None:
    oldest = max(oldest, FIRST_WITH_NODE_LIMITS, key=version_tuple)
    version = oldest if oldest.count(".") == 2 else f"{oldest}.0"
    demo_spec(cluster__version=kubernetes, karpenter__chart__version=version)
    with pytest.raises(SpecErrors, match="does not support Kubernetes"):
        demo_spec(cluster__version=kubernetes, karpenter__chart__version="0.37.0")


def test_every_rule_is_quiet_about_a_good_spec() -> None:
    spec = demo_spec()
    assert [problem for rule in RULES for problem in rule(spec)] == []
