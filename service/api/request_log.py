"""RequestLog: records each request once it has ended: its metrics, the usage of its key, and a log line."""

from __future__ import annotations

import random
from collections.abc import Mapping

import structlog

from service.access.meter import Meter
from service.access.principal import Principal
from service.telemetry import Telemetry
from service.tracing import RequestStages

log = structlog.get_logger(__name__)
REJECTIONS = frozenset({413, 415, 422, 429, 503, 504})
"""Status codes that the metric notellm_rejected counts."""
FAST_SECONDS = 1.0
"""Requests that take longer are logged whatever the sample."""
NOTHING: Mapping[str, str] = {}
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class RequestLog:
    """Records the requests of one app. Of fast answers below status 400, the share `log_sample` is logged. The `meter`
    charges the tokens of a request to its key."""

    def __init__(self, telemetry: Telemetry, meter: Meter, log_sample: float = 1.0) -> None:
        self._telemetry = telemetry
        self._meter = meter
        self._log_sample = log_sample

    def observe(
        self,
        method: str,
        route: str,
        status: int,
        seconds: float,
        *,
        principal: Principal | None,
        stages: RequestStages | None = None,
        context: Mapping[str, str] = NOTHING,
    ) -> None:
        """Record one request. `principal`: None for an unknown caller; a request of a known one counts for its tenant
        even if it was refused. `context`: fields of the log line that are not bound to this task."""
        telemetry = self._telemetry
        if principal and stages:
            self._meter.charge(principal, stages.take_tokens())
        # A method that HTTP does not know is "other", so that callers cannot create metric series.
        telemetry.http_request.labels(method if method in METHODS else "other", route, status).observe(seconds)
        if principal:
            telemetry.count_tenant_request(principal.tenant)
        if status in REJECTIONS:
            telemetry.rejected.labels((stages and stages.refused_for) or str(status)).inc()
        if stages and 200 <= status < 300:
            highest = {inner // 100: inner for inner in sorted(stages.inner_problems)}
            for inner in highest.values():  # one of each class: an answer counts as at most one error of the objective
                telemetry.inner_problems.labels(method, route, str(inner)).inc()
        if 200 <= status < 400 and seconds < FAST_SECONDS and random.random() >= self._log_sample:
            return
        line: dict[str, object] = dict(context)
        if stages:
            line |= _described(stages)
        if principal and principal.key:
            line |= {"tenant": principal.tenant, "key": principal.key}
        log.info("request", method=method, route=route, status=status, ms=_ms(seconds), **line)


def _described(stages: RequestStages) -> dict[str, object]:
    """Return the fields of a log line about the time and tokens of a request, and the problems in its answer."""
    line: dict[str, object] = {f"{stage}_ms": _ms(took) for stage, took in stages.seconds.items()}
    tokens = {"prompt_tokens": stages.prompt_tokens, "generated_tokens": stages.generated_tokens}
    problems = {"problems": sorted(stages.inner_problems)} if stages.inner_problems else {}
    return line | {name: count for name, count in tokens.items() if count} | problems


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 2)
