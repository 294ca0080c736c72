"""Karpenter's scheduling simulation: where pods would fit, and which pods it ignores."""
