"""All gates, one module per subject. Importing this package registers them."""

from gpu_fleet.core.readiness import burst as burst
from gpu_fleet.core.readiness import capacity as capacity
from gpu_fleet.core.readiness import drain as drain
from gpu_fleet.core.readiness import eks as eks
from gpu_fleet.core.readiness import karpenter as karpenter
from gpu_fleet.core.readiness import karpenter_nodes as karpenter_nodes
from gpu_fleet.core.readiness import karpenter_serves as karpenter_serves
from gpu_fleet.core.readiness import objects as objects
from gpu_fleet.core.readiness import plugin_proof as plugin_proof
from gpu_fleet.core.readiness import releases as releases
from gpu_fleet.core.readiness import teardown as teardown
from gpu_fleet.core.readiness import turn as turn
from gpu_fleet.core.readiness import validation as validation
