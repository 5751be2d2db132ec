"""A real S3 server on this machine: a whole run whose data are in a bucket, and what other machines find there.

Run by ``make test-cluster``, in an environment that has s3fs and moto.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from conftest import build_policy
from kedro.io.core import Version
from trust.conftest import Project

from rest_pg.backends.cluster import ClusterGenerator
from rest_pg.backends.protocols import GenerationRequest
from rest_pg.backends.shared_prefix import SharedPrefixGenerator
from rest_pg.config import Decoding
from rest_pg.datasets import PolicyDataset

pytestmark = pytest.mark.skipif(
    not (find_spec("s3fs") and find_spec("moto")), reason="needs s3fs and moto: make test-cluster"
)

CATALOG = """
documents:
  type: rest_pg.datasets.RecordsDataset
  filepath: s3://kept/02_intermediate/documents.jsonl
  record: rest_pg.records.Document
  versioned: true
"policy_{t}":
  type: rest_pg.datasets.PolicyDataset
  filepath: s3://kept/06_models/policy_{t}
  versioned: true
"{namespace}.samples":
  type: rest_pg.datasets.RecordsDataset
  filepath: s3://kept/07_model_output/{namespace}/samples.jsonl
  record: rest_pg.records.Sample
  versioned: true
"""


@pytest.fixture(scope="module")
def bucket() -> Iterator[Any]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ACCESS_KEY_ID": "nobody",
            "AWS_SECRET_ACCESS_KEY": "nothing",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        }.items():
            patch.setenv(name, value)
        import s3fs

        files = s3fs.S3FileSystem()
        files.mkdir("kept")
        yield files
    server.stop()


@pytest.fixture(scope="module")
def project(bucket: Any, tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = Project(tmp_path_factory.mktemp("s3") / "project")
    with (project.root / "conf" / "trust" / "catalog.yml").open("a") as catalog:
        catalog.write(CATALOG)
    run = project.kedro()
    assert run.status == 0, run.text
    return project


def test_another_machine_goes_on_with_what_is_in_the_bucket(project: Project, bucket: Any) -> None:
    assert len(bucket.glob("kept/06_models/policy_1/*/policy_1/complete.json")) == 1
    shutil.rmtree(project.root / "data" / ".objects")
    again = project.kedro("--only-missing-outputs")
    assert again.status == 0, again.text
    assert not {"finetune", "iteration_1.sample_responses", "read_documents"} & set(again.nodes())
    results = project.root / "data" / "08_reporting" / "results.csv"
    assert results.exists()


def test_a_damaged_object_is_made_anew_and_nothing_else(project: Project, bucket: Any) -> None:
    (path,) = bucket.glob("kept/07_model_output/iteration_1/samples.jsonl/*/samples.jsonl")
    whole = bucket.cat_file(path)
    bucket.pipe_file(path, whole[:-20])
    shutil.rmtree(project.root / "data" / ".objects")
    again = project.kedro("--only-missing-outputs")
    assert again.status == 0, again.text
    assert "iteration_1.sample_responses" in again.nodes()
    assert "finetune" not in again.nodes()
    bucket.invalidate_cache()
    found = bucket.glob("kept/07_model_output/iteration_1/samples.jsonl/*/samples.jsonl")
    assert bucket.cat_file(max(found)) == whole


def test_a_user_is_forgotten_in_the_bucket(project: Project, bucket: Any) -> None:
    held = [path for path in bucket.find("kept") if b"user3" in bucket.cat_file(path)]
    assert held
    shutil.rmtree(project.root / "data" / ".objects")
    done = project.forget("user3", "--yes")
    assert done.status == 0, done.text
    bucket.invalidate_cache()
    assert not [path for path in bucket.find("kept") if b"user3" in bucket.cat_file(path)]


@pytest.mark.skipif(find_spec("ray") is None, reason="needs Ray: make test-cluster")
def test_a_worker_fetches_a_policy_that_its_node_does_not_have(
    bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mine = build_policy(tmp_path / "mine")
    kept = build_policy(tmp_path / "kept")
    version = Version(None, "v1")
    place = PolicyDataset(filepath="s3://kept/models/tried", version=version)
    place.save(kept)
    elsewhere = replace(place.load(), path=tmp_path / "not" / "here")
    requests = [GenerationRequest(example_id="e", prompt="<s>Write:", seeds=(1, 2))]
    decoding = Decoding(temperature=1.0, top_p=1.0, max_new_tokens=6)
    engine: dict[str, Any] = {"max_rows": 4, "dtype": "float32"}
    drawn = ClusterGenerator(
        {
            "backend": "rest_pg.backends.shared_prefix.SharedPrefixGenerator",
            "arguments": engine,
        },
        workers=2,
        address="local",
    ).generate(elsewhere, requests, decoding)
    assert drawn == SharedPrefixGenerator(**engine).generate(mine, requests, decoding)
