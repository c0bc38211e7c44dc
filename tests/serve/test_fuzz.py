"""Requests that schemathesis makes from the OpenAPI document, right and wrong ones: the server does what it says there.

`python -m benchmarks.serve_fuzz` does the same with ten thousand, and with raw bytes.
"""

import pytest
from hypothesis import HealthCheck, given, settings


@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_fuzzed_requests_are_answered_as_documented(server, mode):
    schemathesis = pytest.importorskip("schemathesis")
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        negative_data_rejection,
        response_schema_conformance,
        status_code_conformance,
    )

    checks = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
    if mode == "negative":
        checks.append(negative_data_rejection)
    api = schemathesis.openapi.from_dict(server.call("/openapi.json").json)

    every = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]

    @settings(max_examples=80, suppress_health_check=every)
    @given(api.as_strategy(generation_mode=schemathesis.GenerationMode(mode)))
    def fuzz(case):
        case.call_and_validate(base_url=server.url, checks=checks)

    fuzz()
    assert server.call("/health").status == 200
