"""Telemetry: series that begin and end with a tenant."""

from __future__ import annotations

from prometheus_client import generate_latest

from service.telemetry import Telemetry


def test_request_that_outlives_its_tenant_begins_no_series() -> None:
    telemetry = Telemetry()
    telemetry.add_tenant("acme", lambda: 3.0)
    telemetry.count_tenant_request("acme")
    series = generate_latest(telemetry.registry).decode()
    assert 'notellm_tenant_requests_total{tenant="acme"} 1.0' in series
    assert 'notellm_tenant_index_vectors{tenant="acme"} 3.0' in series
    telemetry.forget_tenant("acme")
    telemetry.count_tenant_request("acme")
    assert "acme" not in generate_latest(telemetry.registry).decode()
