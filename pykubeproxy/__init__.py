"""A kube-proxy for Linux nodes that writes only what changed."""

__version__ = "0.1.0"

KUBERNETES_VERSION = "1.36.2"
"""The release whose kube-proxy this one does as."""
