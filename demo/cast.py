"""Who and what of `examples/` the story is about."""

from __future__ import annotations

__all__ = [
    "CART",
    "CLIENT",
    "DNS",
    "FAR",
    "NODE",
    "NODE_PORT",
    "PICTURE",
    "PUBLIC",
    "WEB",
    "WEB_FILE",
    "WEB_PODS",
]

NODE = "192.0.2.10"
FAR = "192.0.2.11"
CLIENT = "192.0.2.100"
DNS = "10.96.0.10"
WEB = "10.96.0.20"
WEB_FILE = "10-web-clusterip.yaml"
WEB_PODS = ("p1", "p2", "r1")
NODE_PORT = 30080
PUBLIC = "203.0.113.40"
CART = "10.96.0.50"

PICTURE = """
client 192.0.2.100 ──┐                       ┌── p1 10.244.0.11
                     ├── node 192.0.2.10 ────┼── p2 10.244.0.12
far    192.0.2.11  ──┘   pykubeproxy here    └── p3 10.244.0.13 (the caller)
 ├── r1 10.244.1.11
 └── r2 10.244.1.12
"""
