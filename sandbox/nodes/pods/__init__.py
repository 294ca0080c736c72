"""Pods and their containers on a node, the device plugin's among them."""
