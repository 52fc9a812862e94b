"""Who may do what at the stand-in API server: requests and ClusterRoles as the real one reads them.

After apiserver/pkg/endpoints/request/requestinfo.go, pkg/apis/rbac/v1/evaluation_helpers.go and
apiserver/pkg/endpoints/handlers/responsewriters/errors.go of Kubernetes 1.36.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from tests.fakes.apianswers import Request, status_body
from tests.fakes.apistore import Object

__all__ = ["Asked", "Rights", "Use", "asked_by", "refusal"]

_VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


@dataclass(frozen=True)
class Asked:
    """What a request wants to do. ``resource`` is empty for one of a bare path."""

    verb: str
    path: str
    group: str = ""
    resource: str = ""
    subresource: str = ""
    namespace: str = ""
    name: str = ""


@dataclass(frozen=True)
class Use:
    """One right of a role: as much of a rule as one request can use."""

    verb: str
    group: str
    resource: str

    def __str__(self) -> str:
        return f"{self.verb} {self.resource}" + (f".{self.group}" if self.group else "")


def asked_by(request: Request) -> Asked:
    """Read verb, resource, namespace and name from method, path and query."""
    parts = request.path.strip("/").split("/")
    if parts[0] == "api" and len(parts) >= 3:
        group, rest = "", parts[2:]
    elif parts[0] == "apis" and len(parts) >= 4:
        group, rest = parts[1], parts[3:]
    else:
        # A bare path is asked for by its HTTP method.
        return Asked(request.method.lower(), request.path)
    namespace = ""
    if rest[0] == "namespaces" and len(rest) > 2:
        namespace, rest = rest[1], rest[2:]
    resource, name, subresource = (*rest, "", "")[:3]
    verb = _VERBS.get(request.method, "get")
    if verb == "get" and not name:
        watches = request.query.get("watch", "false").lower() not in ("false", "0")
        verb = "watch" if watches else "list"
        # The only field that counts for authorization: a list of one object is about that one.
        for field in request.query.get("fieldSelector", "").split(","):
            key, _, value = field.replace("==", "=").partition("=")
            if key == "metadata.name":
                name = value
    elif verb == "delete" and not name:
        verb = "deletecollection"
    return Asked(verb, request.path, group, resource, subresource, namespace, name)


class Rights:
    """What a ClusterRole allows, and which of it was used.

    Only granted cluster-wide, as by a ClusterRoleBinding.
    """

    def __init__(self, role: Object) -> None:
        self._rules: list[dict[str, list[str]]] = role["rules"] or []
        self.used: Counter[Use] = Counter()
        self.refused: Counter[Use] = Counter()

    @property
    def granted(self) -> frozenset[Use]:
        """Each verb on each resource of each group; those of bare paths have the path."""
        return frozenset(
            Use(verb, group, resource)
            for rule in self._rules
            for verb in rule["verbs"]
            for group in rule.get("apiGroups", [""])
            for resource in (*rule.get("resources", ()), *rule.get("nonResourceURLs", ()))
        )

    def allows(self, asked: Asked) -> bool:
        """Decide, and remember."""
        allowed = any(_allows(rule, asked) for rule in self._rules)
        resource = asked.resource or asked.path
        if asked.subresource:
            resource += f"/{asked.subresource}"
        (self.used if allowed else self.refused)[Use(asked.verb, asked.group, resource)] += 1
        return allowed


def refusal(user: str, asked: Asked) -> Object:
    """The Status of a 403, to the letter."""
    if not asked.resource:
        said = f'User "{user}" cannot {asked.verb} path "{asked.path}"'
        return status_body(403, "Forbidden", f"forbidden: {said}", details={})
    resource = asked.resource + (f"/{asked.subresource}" if asked.subresource else "")
    where = f'in the namespace "{asked.namespace}"' if asked.namespace else "at the cluster scope"
    said = (
        f'User "{user}" cannot {asked.verb} resource "{resource}" in API group "{asked.group}" '
        f"{where}"
    )
    subject = asked.resource + (f".{asked.group}" if asked.group else "")
    details: dict[str, Any] = {"kind": asked.resource}
    if asked.name:
        subject += f' "{asked.name}"'
        details = {"name": asked.name, **details}
    if asked.group:
        details["group"] = asked.group
    return status_body(403, "Forbidden", f"{subject} is forbidden: {said}", details=details)


def _allows(rule: dict[str, list[str]], asked: Asked) -> bool:
    if not _has(rule["verbs"], asked.verb):
        return False
    if not asked.resource:
        return any(
            url in ("*", asked.path) or (url.endswith("*") and asked.path.startswith(url[:-1]))
            for url in rule.get("nonResourceURLs", ())
        )
    combined = asked.resource + (f"/{asked.subresource}" if asked.subresource else "")
    anything = f"*/{asked.subresource}" if asked.subresource else "*"
    resources = rule.get("resources", ())
    named = rule.get("resourceNames", ())
    return (
        _has(rule.get("apiGroups", ()), asked.group)
        and ("*" in resources or combined in resources or anything in resources)
        and (not named or asked.name in named)
    )


def _has(allowed: list[str] | tuple[str, ...], one: str) -> bool:
    return "*" in allowed or one in allowed
