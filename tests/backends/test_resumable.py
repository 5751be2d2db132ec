from collections.abc import Sequence
from pathlib import Path

import pytest
from conftest import build_policy

from rest_pg.backends.protocols import GenerationRequest, Target
from rest_pg.backends.resumable import ResumableGenerator, ResumableReward
from rest_pg.backends.shared_prefix import SharedPrefixGenerator
from rest_pg.config import Decoding
from rest_pg.records import PolicyCheckpoint, Sample, Score
from rest_pg.storage.unfinished import remove_finished

DECODING = Decoding(temperature=1.0, top_p=1.0, max_new_tokens=4)
ENGINE = {
    "backend": "rest_pg.backends.shared_prefix.SharedPrefixGenerator",
    "arguments": {"max_rows": 4, "dtype": "float32"},
}
REQUESTS = [
    GenerationRequest(example_id=f"e{i}", prompt=f"Write {i}:", seeds=(i, i + 10)) for i in range(5)
]


class InterruptionError(Exception):
    """What stands for a lost machine."""


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Which examples the engine was asked for, call by call; the third call is interrupted."""
    seen: list[list[str]] = []
    generate = SharedPrefixGenerator.generate

    def interrupted(self, policy, requests, decoding):
        seen.append([r.example_id for r in requests])
        if len(seen) == 3:
            raise InterruptionError
        return generate(self, policy, requests, decoding)

    monkeypatch.setattr(SharedPrefixGenerator, "generate", interrupted)
    return seen


def resumable(tmp_path: Path) -> ResumableGenerator:
    return ResumableGenerator(ENGINE, str(tmp_path / "shards"), prompts_per_shard=2)


def test_an_interruption_costs_one_shard_and_no_byte_changes(
    policy: PolicyCheckpoint, tmp_path: Path, calls: list[list[str]]
) -> None:
    with pytest.raises(InterruptionError):
        resumable(tmp_path).generate(policy, REQUESTS, DECODING)
    second = resumable(tmp_path)
    found = second.generate(policy, REQUESTS, DECODING)
    assert second.reused_tokens == sum(g.n_tokens for g in found if g.example_id != "e4") > 0
    assert calls == [["e0", "e1"], ["e2", "e3"], ["e4"], ["e4"]]
    assert found == resumable(tmp_path / "anew").generate(policy, REQUESTS, DECODING)
    assert [(g.example_id, g.sample_index) for g in found] == [
        (f"e{i}", j) for i in range(5) for j in (0, 1)
    ]


def test_a_damaged_shard_is_drawn_again(policy: PolicyCheckpoint, tmp_path: Path) -> None:
    first = resumable(tmp_path).generate(policy, REQUESTS, DECODING)
    shard = sorted((tmp_path / "shards").rglob("*.jsonl"))[1]
    shard.write_bytes(shard.read_bytes()[:-9])
    assert resumable(tmp_path).generate(policy, REQUESTS, DECODING) == first


def test_another_policy_prompt_or_decoding_takes_nothing_over(
    policy: PolicyCheckpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Sequence[GenerationRequest]] = []

    def count(self, policy, requests, decoding):
        drawn.append(requests)
        return []

    monkeypatch.setattr(SharedPrefixGenerator, "generate", count)
    other = build_policy(tmp_path / "other")
    hotter = DECODING.model_copy(update={"temperature": 0.5})
    changed = [*REQUESTS[:1], GenerationRequest(example_id="e1", prompt="Say:", seeds=(1,))]
    for arguments in (
        (policy, REQUESTS[:2], DECODING),
        (other, REQUESTS[:2], DECODING),
        (policy, changed, DECODING),
        (policy, REQUESTS[:2], hotter),
    ):
        resumable(tmp_path).generate(*arguments)
    assert len(drawn) == 4
    resumable(tmp_path).generate(policy, REQUESTS[:2], DECODING)
    assert len(drawn) == 4  # the first one's shards are still there
    remove_finished()
    assert not list((tmp_path / "shards").iterdir())


def test_the_shard_with_the_longest_prompt_comes_first(
    policy: PolicyCheckpoint, tmp_path: Path, calls: list[list[str]]
) -> None:
    requests = [
        GenerationRequest(example_id=f"e{i}", prompt="Write " + "on" * i, seeds=(i,))
        for i in range(4)
    ]
    found = resumable(tmp_path).generate(policy, requests, DECODING)
    assert calls == [["e2", "e3"], ["e0", "e1"]]
    assert [g.example_id for g in found] == ["e0", "e1", "e2", "e3"]


class Counting:
    """A reward that counts the samples it is shown."""

    seen = 0

    def score(self, samples, targets):
        Counting.seen += len(samples)
        return [Score(reward=0.25, components={"a": 0.5}) for _ in samples]


def test_no_sample_is_scored_twice(tmp_path: Path) -> None:
    samples = [
        Sample(
            example_id="e",
            sample_index=i,
            text="",
            reasoning_path="",
            response=str(i),
            malformed="",
            finished=True,
            n_tokens=1,
        )
        for i in range(5)
    ]
    targets = {"e": Target(input="x", reference="y")}
    engine = {"backend": f"{__name__}.Counting"}
    Counting.seen = 0
    for _ in range(2):
        reward = ResumableReward(engine, str(tmp_path), samples_per_shard=2)
        scores = reward.score(samples, targets)
        assert scores == [Score(reward=0.25, components={"a": 0.5})] * 5
    assert Counting.seen == 5
    assert reward.reachable(1.0)
    reward.score(samples, {"e": Target(input="x", reference="z")})
    assert Counting.seen == 10
