import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rest_pg.backends.protocols import Target
from rest_pg.backends.rewards import CompositeReward
from rest_pg.records import Sample


def sample(response: str, malformed: str = "") -> Sample:
    return Sample(
        example_id="a",
        sample_index=0,
        text=response,
        reasoning_path="",
        response=response,
        malformed=malformed,  # type: ignore[arg-type]
        finished=True,
        n_tokens=1,
    )


def test_word_overlap_worked_by_hand() -> None:
    reward = CompositeReward({"rouge_1": 0.5, "rouge_l": 0.5})
    # four words each; three are shared (F = .75), and two of them in order (F = .5)
    (score,) = reward.score(
        [sample("ships we sail far")], {"a": Target(input="", reference="we sail ships home")}
    )
    assert score.components == pytest.approx({"rouge_1": 0.75, "rouge_l": 0.5})
    assert score.reward == pytest.approx(0.625)


def test_malformed_samples_have_reward_zero() -> None:
    reward = CompositeReward({"rouge_l": 1.0})
    scores = reward.score(
        [sample("we sail", "no_bridge"), sample("we sail")],
        {"a": Target(input="", reference="we sail")},
    )
    assert [s.reward for s in scores] == [0, 1]


def test_similarity_prefers_the_same_subject() -> None:
    reward = CompositeReward({"similarity": 1.0})
    near, far = reward.score(
        [sample("The navy needs new ships."), sample("The schools need new teachers.")],
        {"a": Target(input="", reference="Our fleet must be enlarged with modern vessels.")},
    )
    assert near.reward > far.reward + 0.1
    assert 0 <= far.reward <= near.reward <= 1


def test_likelihood_is_the_perplexity_that_the_reference_saves(policy) -> None:
    model = AutoModelForCausalLM.from_pretrained(policy.path, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(policy.path)

    def log_probability(prefix: str, text: str) -> float:
        head = tokenizer(prefix, add_special_tokens=False).input_ids
        tail = tokenizer(text, add_special_tokens=False).input_ids
        logits = model(torch.tensor([head + tail])).logits[0].log_softmax(-1)
        return sum(logits[len(head) + i - 1, token].item() for i, token in enumerate(tail))

    reward = CompositeReward({"likelihood": 1.0}, model=str(policy.path))
    responses, reference = ["sail on", "", "home"], "we sail"
    scores = reward.score(
        [sample(r) for r in responses], {"a": Target(input="", reference=reference)}
    )
    for response, score in zip(responses, scores, strict=True):
        gain = log_probability("we sail\n\n", response) - log_probability("\n\n", response)
        expected = 1 - math.exp(-max(0.0, gain / len(response))) if response else 0.0
        # bfloat16, where the machine has it, keeps three digits
        assert score.reward == pytest.approx(expected, abs=0.05)
    assert scores[1].reward == 0


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        pytest.param({"judge": 1.0}, "'judge' is not one of similarity", id="unknown"),
        pytest.param({"rouge_l": 0.4}, "add up to 0.4", id="sum"),
        pytest.param(
            {"rouge_l": -1.0, "rouge_1": 2.0}, "rouge_l=-1.0 is not positive", id="negative"
        ),
    ],
)
def test_bad_weights_are_refused(weights, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CompositeReward(weights)
