"""A simulated Kubernetes API server: real clients on one side, objects in memory on the other."""

from sandbox.apiserver.access.auth import Authenticator, User
from sandbox.apiserver.server import ApiServer, Running, running, serve

__all__ = ["ApiServer", "Authenticator", "Running", "User", "running", "serve"]
