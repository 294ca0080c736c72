"""Karpenter's AWS provider: instance types with prices, launches, launch templates, and EC2's refusals."""
