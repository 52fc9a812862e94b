"""What stays of a decision about a Service once its objects are compiled."""

from __future__ import annotations

from collections.abc import Container, Mapping

from msgspec import Struct

from pykubeproxy.model.kinds import Action
from pykubeproxy.model.objects import ServiceKey
from pykubeproxy.model.route import Route
from pykubeproxy.sync.routes import ServiceRoutes

__all__ = ["HealthCheck", "HealthChecks", "Summary"]

HealthCheck = tuple[int, int]
"""A health check node port, and how many ready endpoints its Service has on this node."""


class Summary(Struct, frozen=True):
    """Of one Service; or the sum of many, for which `moved` is made."""

    health_check_port: int = 0
    local_ready: int = 0
    endpoint_count: int = 0
    no_local_internal: int = 0
    no_local_external: int = 0

    @property
    def health_check(self) -> HealthCheck | None:
        return (self.health_check_port, self.local_ready) if self.health_check_port else None

    @classmethod
    def of(cls, routes: ServiceRoutes, counts_services: bool) -> Summary:
        internal, external = routes.no_local_internal, routes.no_local_external
        if counts_services:
            # As in kube-proxy, where Services are counted when a frontend finds nothing: a policy
            # for clients outside who have no way in is not counted.
            internal = min(internal, 1)
            external = int(any(r.external_local and _is_closed(r) for r in routes.routes))
        return cls(
            routes.health_check_port,
            routes.local_ready,
            routes.endpoint_count,
            internal,
            external,
        )

    def moved(self, old: Summary, new: Summary) -> Summary:
        """Running totals, so that no pass adds up the whole cluster."""
        return Summary(
            0,
            0,
            self.endpoint_count + new.endpoint_count - old.endpoint_count,
            self.no_local_internal + new.no_local_internal - old.no_local_internal,
            self.no_local_external + new.no_local_external - old.no_local_external,
        )


def _is_closed(route: Route) -> bool:
    """Tell whether a Local policy leaves a frontend without endpoints."""
    return any(frontend.outside.action is Action.DROP for frontend in route.frontends)


class HealthChecks:
    """Health check node ports and their counts, which follow the kernel and not the cluster."""

    def __init__(self) -> None:
        self._served: dict[ServiceKey, HealthCheck] = {}
        self._waiting: dict[ServiceKey, HealthCheck | None] = {}
        self._changed: set[ServiceKey] = set()

    @property
    def served(self) -> Mapping[ServiceKey, HealthCheck]:
        """What is to be served now."""
        return self._served

    def take(self) -> dict[ServiceKey, HealthCheck | None]:
        """What of `served` is new since the last call; ``None``: there is none any more."""
        changed, self._changed = self._changed, set()
        return {key: self._served.get(key) for key in changed}

    def decided(self, key: ServiceKey, check: HealthCheck | None) -> None:
        """Note what is to be served for *key* once the kernel has its rules."""
        self._waiting[key] = check

    def settle(self, held: Container[ServiceKey]) -> None:
        """Have served what was decided, since the kernel has it, but of those that are *held* back.

        Of these only the end of the last endpoint here: their old rules lead nowhere then. The
        cost follows what changed or is held back.
        """
        for key, check in list(self._waiting.items()):
            served = self._served.get(key)
            if key not in held:
                del self._waiting[key]
            elif served is None or (check is not None and check[1]):
                continue
            else:
                check = (served[0], 0)
            if check == served:
                continue
            self._changed.add(key)
            if check is None:
                del self._served[key]
            else:
                self._served[key] = check
