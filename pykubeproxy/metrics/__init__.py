"""Everything that ``/metrics`` shows."""

from pykubeproxy.metrics.counting import Metrics

__all__ = ["Metrics"]
