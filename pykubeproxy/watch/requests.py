"""What client-go counts of requests to the API server, under its names.

Where this client has nothing of the kind it says so honestly: it limits no rate, so no request ever
waited for that. See component-base's metrics/prometheus/restclient.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from pykubeproxy.measures import Counts, Distribution, Labels, Measure, Readings, Text

__all__ = ["RequestMeasures"]

LATENCY_BOUNDS = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60)
SIZE_BOUNDS = (64, 256, 512, *(1024 * 4**power for power in range(8)))
AGE_BOUNDS = (
    *(600, 1800, 3600, 14400, 86400, 604800, 2592000, 7776000, 15552000, 31104000),
    124416000,
)
NO_ANSWER = "<error>"
"""The code of a request that got none."""


class RequestMeasures:
    """Counts of one client; any thread."""

    def __init__(self) -> None:
        verb_host = ("verb", "host")
        self._requests = Counts(
            _text(
                "rest_client_requests_total",
                "Number of HTTP requests, partitioned by status code, method, and host.",
                ("code", "method", "host"),
            )
        )
        self._durations = Distribution(
            _text(
                "rest_client_request_duration_seconds",
                "Request latency in seconds. Broken down by verb, and host.",
                verb_host,
            ),
            LATENCY_BOUNDS,
        )
        self._waits = Distribution(
            _text(
                "rest_client_rate_limiter_duration_seconds",
                "Client side rate limiter latency in seconds. Broken down by verb, and host.",
                verb_host,
            ),
            LATENCY_BOUNDS,
        )
        self._sent_sizes = Distribution(
            _text(
                "rest_client_request_size_bytes",
                "Request size in bytes. Broken down by verb and host.",
                verb_host,
            ),
            SIZE_BOUNDS,
        )
        self._received_sizes = Distribution(
            _text(
                "rest_client_response_size_bytes",
                "Response size in bytes. Broken down by verb and host.",
                verb_host,
            ),
            SIZE_BOUNDS,
        )
        self._retries = Counts(
            _text(
                "rest_client_request_retries_total",
                "Number of request retries, partitioned by status code, verb, and host.",
                ("code", "verb", "host"),
            )
        )
        self._transports = Counts(
            _text(
                "rest_client_transport_create_calls_total",
                "Number of calls to get a new transport, partitioned by the result of the "
                "operation hit: obtained from the cache, miss: created and added to the cache, "
                "miss-gc: recreated and added back to the cache after being garbage collected, "
                "uncacheable: created and not cached",
                ("result",),
            )
        )
        self._plugin_calls = Counts(
            _text(
                "rest_client_exec_plugin_call_total",
                "Number of calls to an exec plugin, partitioned by the type of event encountered "
                "(no_error, plugin_execution_error, plugin_not_found_error, "
                "client_internal_error) and an optional exit code. The exit code will be set to 0 "
                "if and only if the plugin call was successful.",
                ("code", "call_status"),
            )
        )
        self._has_plugin = False

    def measures(self) -> tuple[Measure, ...]:
        """All of them."""
        return (
            *(self._requests, self._durations, self._waits, self._sent_sizes),
            *(self._received_sizes, self._retries, self._transports, self._plugin_calls),
            *self._fixed(),
        )

    def transport_made(self, plugin_worked: bool | None = None) -> None:
        """A credential was loaded, and connections are made anew with it.

        *plugin_worked*: an exec plugin was asked for it, and gave one or not; ``None``: no plugin.
        """
        self._transports.add("miss")
        if plugin_worked is not None:
            self._has_plugin = True
            outcome = ("0", "no_error") if plugin_worked else ("1", "plugin_execution_error")
            self._plugin_calls.add(*outcome)

    def asked(self, method: str, server: str, sent_bytes: int | None) -> None:
        """A request is sent; *sent_bytes* is the size of its body, ``None`` for a watch."""
        if sent_bytes is not None:  # client-go limits no watch either
            host = _host(server)
            self._waits.observe(0.0, method, host)
            self._sent_sizes.observe(sent_bytes, method, host)

    def answered(self, method: str, server: str, code: int | None) -> None:
        """Its answer begins, or (``None``) none came."""
        self._requests.add(NO_ANSWER if code is None else str(code), method, _host(server))

    def read(self, method: str, server: str, seconds: float, received_bytes: int | None) -> None:
        """Its answer ended so long after it was sent, with so much body, if any was read."""
        host = _host(server)
        self._durations.observe(seconds, method, host)
        if received_bytes is not None:
            self._received_sizes.observe(received_bytes, method, host)

    def will_retry(self, method: str, server: str, code: int) -> None:
        """The server asked to come again later, which is done."""
        self._retries.add(str(code), method, _host(server))

    def _fixed(self) -> tuple[Measure, ...]:
        """What is what it is: one set of connections, and no certificates from plugins."""
        return (
            Readings(
                _text(
                    "rest_client_transport_cache_entries",
                    "Number of transport entries in the internal cache.",
                ),
                lambda: {(): 1.0},
            ),
            Counts(
                _text(
                    "rest_client_transport_cert_rotation_gc_calls_total",
                    "Number of times a cert rotation goroutine cancel func is called via GC "
                    "cleanup of the associated transport",
                )
            ),
            Readings(
                _text(
                    "rest_client_exec_plugin_ttl_seconds",
                    "Gauge of the shortest TTL (time-to-live) of the client certificate(s) managed "
                    "by the auth exec plugin. The value is in seconds until certificate expiry "
                    "(negative if already expired). If auth exec plugins are unused or manage no "
                    "TLS certificates, the value will be +INF.",
                ),
                self._plugin_ttl,
            ),
            Distribution(
                _text(
                    "rest_client_exec_plugin_certificate_rotation_age",
                    "Histogram of the number of seconds the last auth exec plugin client "
                    "certificate lived before being rotated. If auth exec plugin client "
                    "certificates are unused, histogram will contain no data.",
                ),
                AGE_BOUNDS,
            ),
        )

    def _plugin_ttl(self) -> dict[Labels, float]:
        # When a plugin's certificate ends is not told to us: no value rather than a wrong one.
        return {} if self._has_plugin else {(): float("inf")}


def _host(server: str) -> str:
    return urlsplit(server).netloc


def _text(name: str, text: str, labels: tuple[str, ...] = ()) -> Text:
    return Text(name, text, labels, "ALPHA")
