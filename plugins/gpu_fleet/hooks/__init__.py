"""I/O: AWS, Kubernetes, Helm, files. Importing this package lets core read the templates of ``include``."""

from gpu_fleet.hooks.files import templates as templates
