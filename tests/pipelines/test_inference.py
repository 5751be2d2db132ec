import json
from pathlib import Path

import pytest
from kedro.io import DataCatalog, MemoryDataset
from kedro.io.core import DatasetError
from kedro.runner import SequentialRunner

from rest_pg.backends.retrievers import Bm25Retriever
from rest_pg.backends.shared_prefix import SharedPrefixGenerator
from rest_pg.config import (
    Decoding,
    EvaluationParams,
    PromptParams,
    ResponseFormat,
    RetrievalParams,
)
from rest_pg.datasets.sources.documents import RequestsDataset
from rest_pg.pipelines.inference.nodes import read_requests
from rest_pg.pipelines.inference.pipeline import create_pipeline
from rest_pg.records import Answer, PolicyCheckpoint

REQUESTS = [
    {
        "user": "ann",
        "request": "Write about the pier.",
        "documents": ["The pier is old.", "Hills."],
    },
    {"user": "bob", "request": "Write.", "documents": [{"text": "Ships.", "date": "2001"}]},
]
TEMPLATE = "instruction: {{ instruction }}\ncontext: {{ context }}\nanswer:"


def answer(policy: PolicyCheckpoint, requests: list[dict], seed: int = 7) -> list[Answer]:
    decoding = Decoding(temperature=0.7, top_p=0.95, max_new_tokens=12)
    values = {
        "requests": requests,
        "retriever": Bm25Retriever(),
        "base_policy": policy,
        "policy_2": policy,
        "response_template": TEMPLATE,
        "generator": SharedPrefixGenerator(max_rows=4, dtype="float32"),
        "params:retrieval": RetrievalParams(k=1),
        "params:response_format": ResponseFormat(reasoning=False),
        "params:prompt": PromptParams(max_tokens=200, system=""),
        "params:evaluation": EvaluationParams(
            samples_per_prompt=4, decoding=decoding, n_bootstrap=100
        ),
        "params:seed": seed,
    }
    catalog = DataCatalog({k: MemoryDataset(v, copy_mode="assign") for k, v in values.items()})
    outputs = SequentialRunner().run(create_pipeline("policy_2"), catalog)
    return outputs["answers"].load()


def test_requests_are_answered_from_what_was_retrieved(policy: PolicyCheckpoint) -> None:
    first, second = answer(policy, REQUESTS)
    assert (first.user_id, first.request) == ("ann", "Write about the pier.")
    assert first.documents == ("request-1#1",)
    assert second.documents == ("request-2#1",)
    assert first.response or first.malformed == "empty_response"


def test_the_same_seed_gives_the_same_answers_beside_whatever_else(
    policy: PolicyCheckpoint,
) -> None:
    both = answer(policy, REQUESTS)
    assert answer(policy, REQUESTS) == both
    assert answer(policy, REQUESTS[:1]) == both[:1]
    assert answer(policy, REQUESTS, seed=8) != both


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (
            {"request": "x", "documents": ["y"]},
            "user: expected a text that is not empty, or a whole number, found None",
        ),
        ({"user": "a", "request": " ", "documents": ["y"]}, "request: expected a text"),
        ({"user": "a", "request": "x"}, "documents: expected a list of at least one text"),
        (
            {"user": "a", "request": "x", "documents": [3]},
            "document 1: expected a text or an object",
        ),
        (
            {"user": "a", "request": "x", "documents": [{"text": "\ud800"}]},
            "expected valid Unicode",
        ),
        ({"unreadable": "no JSON"}, "found where a JSON object should be"),
    ],
)
def test_a_bad_request_is_named(request_: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_requests([request_])


def test_requests_come_from_a_file_that_is_named_if_it_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    with pytest.raises(DatasetError, match=r"put your requests in it.*--params requests=FILE"):
        RequestsDataset(filepath=str(path)).load()
    path.write_text("\n".join(json.dumps(request) for request in REQUESTS), encoding="utf-8")
    assert [e.user_id for e in read_requests(RequestsDataset(filepath=str(path)).load())] == [
        "ann",
        "bob",
    ]
