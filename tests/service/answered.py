"""Asking the service in a test: answers and refusals that keep the contract."""

from __future__ import annotations

from typing import Any

import httpx

from service.schemas import Problem, RecommendAnswer


async def ask(client: httpx.AsyncClient, path: str = "/recommend", **body: Any) -> dict[str, Any]:
    """The answer, checked against the contract."""
    response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    RecommendAnswer.model_validate_json(response.content)
    answer: dict[str, Any] = response.json()
    return answer


def refusal(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The refusal, checked against the contract."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    found = Problem.model_validate_json(response.content)
    assert (found.status, found.code, found.request_id) == (status, code, response.headers["x-request-id"])
    values: dict[str, Any] = response.json()
    return values


def ids(answer: dict[str, Any]) -> list[str]:
    """Of the labels, best first."""
    return [result["id"] for result in answer["results"]]
