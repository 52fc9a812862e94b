"""A kube-proxy for Linux nodes that writes only what changed."""

__version__ = "0.1.0"
