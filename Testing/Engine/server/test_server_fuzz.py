"""A fuzzer on the API's own description: whatever it makes up, the answer is one that the description announces."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Dict, Iterator

import httpx
import pytest
from famsam.server.app import create_app
from server_fixtures import TEST_LIMITS, ball_zyx, live, nifti_bytes, upload

schemathesis = pytest.importorskip("schemathesis", reason="fuzzing the API needs schemathesis, of the extra 'test'")
from hypothesis import HealthCheck, given, settings  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
SCHEMA = schemathesis.openapi.from_dict(create_app(None).openapi())
OPERATIONS = [result.ok() for result in SCHEMA.get_all_operations()]
CHECKS = [
    getattr(schemathesis.checks, name)
    for name in (
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_schema_conformance",
        "negative_data_rejection",
    )
]


class OpenThings:
    """A scan and a session that exist, opened again when a request has closed them."""

    def __init__(self, client: httpx.Client) -> None:
        self._client, self.base_url = client, str(client.base_url).rstrip("/")
        self.ids = {"volume_id": "none", "session_id": "none"}

    def check(self) -> Dict[str, str]:
        if self._client.get(f"/v1/sessions/{self.ids['session_id']}/mask").status_code != 200:
            if self._client.get(f"/v1/volumes/{self.ids['volume_id']}").status_code != 200:
                self.ids["volume_id"] = upload(self._client, nifti_bytes(ball_zyx())).json()["id"]
            answer = self._client.post(f"/v1/volumes/{self.ids['volume_id']}/sessions")
            self.ids["session_id"] = answer.json()["id"]
        return self.ids


@pytest.fixture(scope="module")
def things(model: Any) -> Iterator[OpenThings]:
    with live(create_app(model, limits=replace(TEST_LIMITS, sessions=1000, volumes=1000))) as client:
        yield OpenThings(client)


@pytest.mark.parametrize(
    ("label", "mode"),
    [(operation.label, "POSITIVE") for operation in OPERATIONS]
    + [(operation.label, "NEGATIVE") for operation in OPERATIONS if "json" in str(list(operation.body))],
)
def test_every_operation_answers_as_described(things: OpenThings, label: str, mode: str) -> None:
    operation = next(operation for operation in OPERATIONS if operation.label == label)
    generation_mode = schemathesis.GenerationMode[mode]

    @settings(max_examples=8, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy(generation_mode=generation_mode))
    def fuzz(case: Any) -> None:
        open_now = things.check()
        if mode == "POSITIVE":
            for name in set(open_now) & set(case.path_parameters or {}):
                case.path_parameters[name] = open_now[name]
        case.call_and_validate(base_url=things.base_url, checks=CHECKS, timeout=60)

    fuzz()
