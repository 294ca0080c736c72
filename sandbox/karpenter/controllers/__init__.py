"""Karpenter's controllers, named as in kubernetes-sigs/karpenter ``pkg/controllers``."""
