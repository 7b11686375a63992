"""RateLimit headers: what is left of a key's quota."""

from __future__ import annotations

import math

from service.access.principal import Quota
from service.access.quota import WINDOW_SECONDS, Usage


def rate_limit_headers(usage: Usage, quota: Quota) -> list[tuple[bytes, bytes]]:
    """Return RateLimit-Policy and RateLimit, structured fields of draft-ietf-httpapi-ratelimit-headers-10. `r`: what is
    left of the quota; `t`: seconds until all of it is available again."""
    policies, limits = [], []
    for name, bound, counted in (
        ("requests", quota.requests_per_minute, usage.requests),
        ("tokens", quota.tokens_per_minute, usage.tokens),
    ):
        if bound is not None:
            left = max(0, bound - math.ceil(counted.used))
            policies.append(f'"{name}";q={bound};w={WINDOW_SECONDS}')
            limits.append(f'"{name}";r={left};t={math.ceil(counted.seconds_until(0))}')
    return [(b"ratelimit-policy", ", ".join(policies).encode()), (b"ratelimit", ", ".join(limits).encode())]
