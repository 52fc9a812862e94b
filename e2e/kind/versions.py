"""What the cluster is made of, pinned; kind and its node image belong together."""

KIND = "v0.32.0"
NODE_IMAGE = (
    "kindest/node:v1.36.1@sha256:3489c7674813ba5d8b1a9977baea8a6e553784dab7b84759d1014dbd78f7ebd5"
)
KUBECTL_MINORS = (35, 36, 37)
"""One minor version beside the server's, as Kubernetes supports it."""
