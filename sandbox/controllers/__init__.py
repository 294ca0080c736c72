"""What kube-controller-manager and kube-scheduler do, as far as helm, kubectl, Karpenter and the package can notice."""

from sandbox.controllers.manager import run

__all__ = ["run"]
