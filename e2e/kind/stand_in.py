"""Stands for docker, kind and kubectl in test_kind.py: writes down its calls, and plays a cluster.

FAIL_ON, a regular expression, names the calls
that fail; CALLS is the file that they are written to, one JSON list on each line.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

PODS = {"client-a": "worker", "client-b": "worker2"}
ADDRESSES = {"worker": ["172.18.0.3", "fc00:f853::3"], "worker2": ["172.18.0.4", "fc00:f853::4"]}
CLUSTER_IPS = ["10.96.5.5", "fd00:10:96::5"]
WEB_PODS = ["10.244.1.2", "10.244.1.3", "10.244.2.2"]


def main(program: str) -> None:
    """Be *program*, with the arguments of this process."""
    call = [program, *sys.argv[1:]]
    with Path(os.environ["CALLS"]).open("a") as calls:
        calls.write(json.dumps(call) + "\n")
    text = " ".join(call)
    if (failing := os.environ.get("FAIL_ON")) and re.search(failing, text):
        sys.exit("the stand-in was told to fail")
    print(answer(call, text))


def answer(call: list[str], text: str) -> object:
    dual = "dual" in os.environ["FAMILY"]
    match call[0]:
        case "docker":
            return {"run": "pykubeproxy 0.1.0 (Kubernetes v1.36.2)", "image": "143500000"}.get(
                call[1], "27.0.0"
            )
        case "kind":
            return "kind v0.32.0 go1.26 linux/amd64" if call[1] == "version" else ""
    if "version" in call:
        return json.dumps({"clientVersion": {"minor": "36", "gitVersion": "v1.36.1"}})
    if "kustomize" in call:
        return Path(call[-1], "../../daemonset.yaml").read_text()
    if "--output=json" in call:
        return json.dumps(objects(text, dual))
    if "resolve" in call:
        addresses = WEB_PODS if "headless" in call[-1] else CLUSTER_IPS[: 2 if dual else 1]
        return json.dumps(sorted(addresses))
    if "/scripts/client.py" in call:
        return json.dumps({"answers": answers(call), "failures": []})
    return ""


def objects(text: str, dual: bool) -> object:
    if " nodes " in text:
        return {
            "items": [
                {
                    "metadata": {"name": name},
                    "status": {
                        "addresses": [{"type": "InternalIP", "address": a} for a in addresses]
                    },
                }
                for name, addresses in ADDRESSES.items()
            ]
        }
    if " pods " in text:
        return {
            "items": [
                {"metadata": {"name": pod}, "spec": {"nodeName": node}}
                for pod, node in PODS.items()
            ]
        }
    return {"spec": {"clusterIPs": CLUSTER_IPS[: 2 if dual else 1]}}


def answers(call: list[str]) -> dict[str, int]:
    if "/proxyMode" in call[-2]:
        return {os.environ["MODE"]: 1}
    return {"web-1": 20} if "sticky" in call[-2] else {"web-1": 7, "web-2": 7, "web-3": 6}
