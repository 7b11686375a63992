"""RequestLog: what is left of each request once it has ended: its metrics, the use of its key, and a log line."""

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
"""Status codes that count as notellm_rejected."""
FAST_SECONDS = 1.0
"""A request that takes longer is logged whatever the sample: none is so slow while all is well."""
NOTHING: Mapping[str, str] = {}
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class RequestLog:
    """Observes the requests of one app. Of fast answers below 400 the share `log_sample` is logged. What a request has
    used is charged to its key by the `meter`."""

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
        """Observe one request. `principal`: None for a caller who is not known; one who is known may have been refused,
        and the request counts as one of its tenant all the same. `context`: fields of the log line that are not bound
        to this task."""
        telemetry = self._telemetry
        if principal and stages:
            self._meter.charge(principal, stages.take_tokens())
        # A method that HTTP does not know is "other", so that callers cannot make series up.
        telemetry.http_request.labels(method if method in METHODS else "other", route, status).observe(seconds)
        if principal:
            telemetry.count_tenant_request(principal.tenant)
        if status in REJECTIONS:
            telemetry.rejected.labels((stages and stages.refused_for) or str(status)).inc()
        if stages and 200 <= status < 300:
            highest = {inner // 100: inner for inner in sorted(stages.inner_problems)}
            for inner in highest.values():  # one of each class: an answer is at most one error of the objective
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
    """Return the fields of a log line about what a request took and used, and which problems its answer holds."""
    line: dict[str, object] = {f"{stage}_ms": _ms(took) for stage, took in stages.seconds.items()}
    tokens = {"prompt_tokens": stages.prompt_tokens, "generated_tokens": stages.generated_tokens}
    problems = {"problems": sorted(stages.inner_problems)} if stages.inner_problems else {}
    return line | {name: count for name, count in tokens.items() if count} | problems


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 2)
