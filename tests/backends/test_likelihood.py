import pytest
import torch
from conftest import build_policy
from transformers import AutoModelForCausalLM, AutoTokenizer, MistralConfig, MistralForCausalLM

from rest_pg.backends import likelihood, models
from rest_pg.backends.likelihood import Likelihood, LikelihoodScorer
from rest_pg.backends.models import EMBEDDED
from rest_pg.backends.protocols import Judged

GROUPS = [("ships in the bay", [" sail", "", " rest at night"]), ("a", [" b"])]


@pytest.fixture
def float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likelihood, "supports_bfloat16", lambda: False)
    likelihood.load_scoring_model.cache_clear()


def judged(before: str, candidates: list[str], after: str) -> Judged:
    return Judged(before=before, candidates=tuple(candidates), after=after)


def plain(path, groups) -> list[list[float]]:
    """Each continuation alone behind its text, by the ordinary forward."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(path)
    ids = lambda text: tokenizer(text, add_special_tokens=False).input_ids  # noqa: E731
    scores: list[list[float]] = []
    for text, continuations in groups:
        scores.append([])
        for continuation in continuations:
            head, tail = ids(text), ids(continuation)
            logits = model(torch.tensor([head + tail])).logits[0].log_softmax(-1)
            scores[-1].append(
                sum(logits[len(head) + i - 1, token].item() for i, token in enumerate(tail))
            )
    return scores


@pytest.mark.parametrize("max_tokens", [32, 4096])
def test_scores_are_those_of_separate_forwards(policy, float32, max_tokens: int) -> None:
    ours = LikelihoodScorer(str(policy.path), max_tokens).score(GROUPS)
    assert [[score.n_tokens for score in group] for group in ours] == [[5, 0, 14], [2]]
    for own, expected in zip(ours, plain(policy.path, GROUPS), strict=True):
        assert [s.log_probability for s in own] == pytest.approx(expected, abs=1e-4)


def test_a_sliding_window_is_kept(tmp_path, float32) -> None:
    build_policy(tmp_path)
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=258,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=4,
        initializer_range=0.3,
    )
    MistralForCausalLM(config).save_pretrained(tmp_path)
    ours = LikelihoodScorer(str(tmp_path)).score(GROUPS)
    for own, expected in zip(ours, plain(tmp_path, GROUPS), strict=True):
        assert [s.log_probability for s in own] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("max_tokens", [40, 4096])
def test_levels_are_scored_whole_behind_each_candidate(policy, float32, max_tokens: int) -> None:
    levels, candidates = ["1;", "10;", "7;"], ["we sail", "", "home"]
    scorer = LikelihoodScorer(str(policy.path), max_tokens)
    (ours,) = scorer.score_levels([judged("rate this:", candidates, " score")], levels)
    groups = [(f"rate this:{candidate} score", levels) for candidate in candidates]
    for own, expected in zip(ours, plain(policy.path, groups), strict=True):
        assert own == pytest.approx(expected, abs=1e-4)


def test_what_is_longest_is_judged_first_and_lack_of_memory_is_explained(
    policy, float32, monkeypatch
) -> None:
    asked = [judged("rate this:", ["a" * n], " score") for n in (1, 9, 5)]
    scorer = LikelihoodScorer(str(policy.path))
    alone = [scorer.score_levels([own], ["1;"])[0] for own in asked]
    order: list[int] = []
    score = LikelihoodScorer._score_judged

    def noted(self, own, answers):
        order.append(len(own.candidates[0]))
        return score(self, own, answers)

    monkeypatch.setattr(LikelihoodScorer, "_score_judged", noted)
    assert scorer.score_levels(asked, ["1;"]) == alone
    assert order == [9, 5, 1]

    def lack(*_: object) -> None:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(likelihood, "_losses", lack)
    with pytest.raises(MemoryError, match="memory ran out while judging"):
        scorer.score_levels(asked, ["1;"])


def test_levels_need_tokens_and_a_covered_model(policy, tmp_path) -> None:
    scorer = LikelihoodScorer(str(policy.path))
    with pytest.raises(ValueError, match="the ending has no tokens"):
        scorer.score_levels([judged("a", ["b"], "")], ["1"])
    with pytest.raises(ValueError, match="has no tokens: fill it"):
        scorer.score_levels([judged("a", ["b"], ":")], ["1", ""])
    with pytest.raises(ValueError, match=r"model_type=gpt2 .*: name another model"):
        LikelihoodScorer(str(build_policy(tmp_path, "gpt2").path)).score_levels([], ["1"])


def test_bad_input_names_value_and_remedy(policy) -> None:
    with pytest.raises(ValueError, match="the text '' has no tokens"):
        LikelihoodScorer(str(policy.path)).score([("", ["x"])])
    with pytest.raises(ValueError, match=r"4 tokens .* of 3 is above max_tokens=6: raise it"):
        LikelihoodScorer(str(policy.path), 6).score([("four", ["abc"])])
    assert LikelihoodScorer(str(policy.path)).score([("x", [""])]) == [[Likelihood(0.0, 0)]]


@pytest.mark.parametrize("source", [EMBEDDED, None])
def test_every_source_scores_on_the_device(policy, source, monkeypatch) -> None:
    """Also the embedded model, which once stayed on the CPU where there was a GPU."""
    loaded = AutoModelForCausalLM.from_pretrained(policy.path), None
    monkeypatch.setattr(models, "_load_embedded", lambda: loaded)
    monkeypatch.setattr(likelihood, "device", lambda: torch.device("meta"))
    likelihood.load_scoring_model.cache_clear()
    model, _ = likelihood.load_scoring_model(source or str(policy.path))
    likelihood.load_scoring_model.cache_clear()
    assert {p.device.type for p in model.parameters()} == {"meta"}
