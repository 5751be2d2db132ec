import pytest

from rest_pg.backends.protocols import Generation
from rest_pg.config import Decoding, EvaluationParams, ExpectationParams, ResponseFormat
from rest_pg.pipelines.evaluation.nodes import sample_held_out
from rest_pg.pipelines.self_training.nodes import check_format, sample_responses
from rest_pg.records import PolicyCheckpoint, Prompt, Split

FORMAT = ResponseFormat(reasoning=True, lead_in="Style:", bridge="Answer:", max_malformed=0.5)
DECODING = Decoding(temperature=0.7, top_p=1, max_new_tokens=8)
GOOD, NO_BRIDGE, NO_LEAD_IN = "Style: calm. Answer: Yes.", "Style: calm.", "Yes."


class Writer:
    """Writes the texts that it was given, in turns."""

    def __init__(self, *texts: str) -> None:
        self.texts = texts

    def generate(self, policy, requests, decoding):
        return [
            Generation(
                example_id=request.example_id,
                sample_index=i,
                text=self.texts[i % len(self.texts)],
                n_tokens=3,
                finished=True,
            )
            for request in requests
            for i in range(len(request.seeds))
        ]


def prompt(number: int, split: Split) -> Prompt:
    return Prompt(
        example_id=f"e{number}",
        user_id="ann",
        split=split,
        text="Write.",
        input="Write.",
        reference="Yes.",
        n_tokens=1,
        n_documents=0,
        n_words_cut=0,
    )


def draw(*texts: str, iteration: int | None, response_format: ResponseFormat = FORMAT):
    """Draw sixteen samples for one prompt: in an E-step, or of a held-out one (no iteration)."""
    policy = PolicyCheckpoint(path=None)  # type: ignore[arg-type]
    if iteration is None:
        evaluation = EvaluationParams(samples_per_prompt=16, decoding=DECODING, n_bootstrap=100)
        held_out = [prompt(1, "test")]
        return sample_held_out(
            policy, held_out, Writer(*texts), response_format, evaluation, 7, fine_tuned=True
        )[0]
    expectation = ExpectationParams(samples_per_prompt=16, decoding=DECODING)
    return sample_responses(
        policy,
        [prompt(1, "train")],
        Writer(*texts),
        response_format,
        expectation,
        7,
        iteration=iteration,
    )[0]


@pytest.mark.parametrize("iteration", [1, None])
def test_a_policy_that_did_not_learn_the_format_stops_the_run(iteration: int | None) -> None:
    with pytest.raises(
        ValueError,
        match=r"12 of 16 samples .* malformed \(no_lead_in 8, no_bridge 4\).*max_malformed=0.5 .*sft.epochs",
    ):
        draw(GOOD, NO_LEAD_IN, NO_BRIDGE, NO_LEAD_IN, iteration=iteration)
    # half of them is no more than half: they are counted, and the run goes on
    assert sum(bool(s.malformed) for s in draw(GOOD, NO_BRIDGE, iteration=iteration)) == 8
    lenient = FORMAT.model_copy(update={"max_malformed": 1.0})
    assert len(draw(NO_BRIDGE, iteration=iteration, response_format=lenient)) == 16


def test_a_few_samples_stop_nothing() -> None:
    samples = draw(NO_BRIDGE, iteration=2)
    check_format(samples[:15], FORMAT)
    with pytest.raises(ValueError, match="16 of 16"):
        check_format(samples, FORMAT)


def test_later_policies_are_counted_and_not_stopped() -> None:
    assert all(s.malformed for s in draw(NO_BRIDGE, iteration=2))
