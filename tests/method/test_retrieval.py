import logging
from pathlib import Path

import pytest
from conftest import build_policy, document, example
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import Template
from kedro.io.core import DatasetError

from rest_pg.backends.retrievers import Bm25Retriever, RecencyRetriever
from rest_pg.config import RetrievalParams
from rest_pg.datasets import PolicyDataset
from rest_pg.datasets.policy import TRAINED_WITH
from rest_pg.method.retrieval import build_query, params_of, retrieve_profiles
from rest_pg.pipelines.inference.nodes import read_requests
from rest_pg.records import Document, Example, PolicyCheckpoint, Profile

PROMPTS = Path(__file__).parents[2] / "conf"
REQUEST = Template((PROMPTS / "base/prompts/request.jinja").read_text("utf-8"))
MAIL = Template((PROMPTS / "mail/prompts/request.jinja").read_text("utf-8"))


@pytest.mark.parametrize(
    ("request_", "query"),
    [
        pytest.param(
            'Write a passage for "T: a year" using the following items: 1. tax 2. navy 3. pier.',
            "tax navy pier",
            id="numbered",
        ),
        pytest.param(
            'Generate an abstract for the title "T" using the following items: a, b.',
            "a, b.",
            id="not numbered",
        ),
        pytest.param(
            "Write an abstract using items: picture,\n river", "picture, river", id="short"
        ),
        pytest.param("Write using the following items: 1. a 3. b.", "1. a 3. b.", id="no list"),
        pytest.param(
            "Write using the following items: 1. v2. 0 2. b.", "v2. 0 b", id="a number in it"
        ),
        pytest.param(
            "Write a note about the  harbour.", "Write a note about the harbour.", id="free"
        ),
        pytest.param(
            "Write using the following items: ", "Write using the following items:", id="none"
        ),
        pytest.param(
            'Complete the following email with the subject "Re: "pier"", which begins: Dear Zoe, we',
            'Re: "pier" Dear Zoe, we',
            id="mail",
        ),
        pytest.param(
            "Complete the following email, which begins: Dear Zoe", "Dear Zoe", id="no subject"
        ),
        pytest.param(
            "A review. The box says: items: two knives.",
            "A review. The box says: items: two knives.",
            id="not ours",
        ),
    ],
)
def test_a_query_is_what_a_request_names(request_: str, query: str) -> None:
    assert build_query(request_) == query
    assert build_query(request_, "request") == " ".join(request_.split())


WORD = st.text(st.characters(categories=["L"]), min_size=1, max_size=9)


@given(st.lists(WORD, min_size=1, max_size=6), WORD)
def test_our_own_requests_give_their_items_back(items: list[str], title: str) -> None:
    request = " ".join(REQUEST.render(title=title, date=None, items=items, opening="").split())
    assert build_query(request) == " ".join(items)
    mail = " ".join(MAIL.render(title=title, opening=" ".join(items)).split())
    assert build_query(mail) == " ".join([title, *items])


def documents(n: int) -> tuple[Document, ...]:
    texts = ("The pier is old.", "Hills are green.", "A tax on ships.", "The navy sails.")
    return tuple(document(i, text) for i, text in enumerate(texts[:n]))


class Asked(Bm25Retriever):
    """Remembers what it was asked for."""

    def __init__(self) -> None:
        self.queries: list[str] = []

    def retrieve(self, examples: list[Example], k: int) -> list[Profile]:
        self.queries += [example.query for example in examples]
        return super().retrieve(examples, k)


@pytest.mark.parametrize("kind", ["given", "request"])
def test_training_batch_and_serving_look_for_the_same(kind: str) -> None:
    text = "Write a passage using the following items: 1. tax 2. navy."
    trained = example(1, input=text, query=build_query(text), profile=documents(4))
    served = read_requests(
        [{"user": "x", "request": text, "documents": [d.text for d in documents(4)]}]
    )
    found, params = [], RetrievalParams(k=2, query=kind)
    for asked in ([trained], served):
        retriever = Asked()
        (profile,) = retrieve_profiles(asked, retriever, params)
        found.append((retriever.queries, [d.text for d in profile.documents]))
    assert found[0] == found[1]
    assert found[0][0] == ["tax navy" if kind == "given" else text]


def test_a_user_with_fewer_documents_gets_all_of_them(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    both = [example(1, profile=documents(1)), example(2, profile=documents(4))]
    one, two = retrieve_profiles(both, RecencyRetriever(), RetrievalParams(k=3))
    assert [len(one.documents), len(two.documents)] == [1, 3]
    assert "2 examples; 1 have fewer, and got all of them" in caplog.text


def saved(place: Path, query: str) -> PolicyCheckpoint:
    dataset = PolicyDataset(filepath=str(place / "policy_1"))
    built = build_policy(place / "built")
    dataset.save(PolicyCheckpoint(built.path, query=query))  # type: ignore[arg-type]
    return dataset.load()


def test_a_policy_keeps_the_query_of_its_training(tmp_path: Path) -> None:
    policy = saved(tmp_path, "request")
    assert policy.query == "request"
    assert params_of(policy, RetrievalParams(k=2)).query == "request"
    retriever = Asked()
    text = "Write using the following items: 1. tax."
    asked = [example(1, input=text, profile=documents(2))]
    retrieve_profiles(asked, retriever, RetrievalParams(k=1, query="given"), policy)
    assert retriever.queries == [text]


def test_a_policy_that_says_nothing_takes_the_parameters(tmp_path: Path) -> None:
    policy = saved(tmp_path, "")
    assert policy.query == ""
    assert not (policy.path / TRAINED_WITH).exists()
    for kind in ("given", "request"):
        assert params_of(policy, RetrievalParams(k=2, query=kind)).query == kind


def test_a_query_of_a_later_version_is_named(tmp_path: Path) -> None:
    policy = saved(tmp_path, "request")
    with pytest.raises(DatasetError, match="names the query 'plan', and given or request was expe"):
        saved(tmp_path / "other", "plan")
    assert policy.query == "request"
