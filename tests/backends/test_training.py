from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import MODEL_TYPES, build_policy
from datasets import Dataset
from kedro.config import OmegaConfigLoader
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from rest_pg.backends import sft_loop, sft_trainer
from rest_pg.backends.sft_trainer import SharedPromptTrainer
from rest_pg.backends.shared_prompt import (
    ATTENTION,
    Blocks,
    Row,
    collate_row,
    preference_loss,
    weighted_loss,
)
from rest_pg.backends.training_rows import tokenize_rows
from rest_pg.config import FewExamplesParams, PreferenceParams, TrainingParams
from rest_pg.records import PolicyCheckpoint, TrainingExample

EXAMPLES = [
    TrainingExample(example_id="a", prompt="<s>about ships", completion="We sail."),
    TrainingExample(example_id="a", prompt="<s>about ships", completion="A long voyage."),
    TrainingExample(example_id="b", prompt="<s>hills", completion="Green."),
]
PARAMS = TrainingParams(epochs=8, batch_size=2, learning_rate=1e-2, max_tokens=64)


def test_layout_worked_by_hand() -> None:
    row = collate_row(Row(prompt=[5, 6, 7], completions=[[1, 2], [3]], weights=[1.0, 0.5]))
    assert row["input_ids"].tolist() == [[5, 6, 7, 1, 7]]
    assert row["position_ids"].tolist() == [[0, 1, 2, 3, 2]]
    assert row["logits_to_keep"].tolist() == [2, 3, 4]
    assert row["labels"].tolist() == [[-100, 1, 2, 3]]
    assert row["weights"].tolist() == [[1.0, 1.0, 0.5]]
    assert row["lengths"].tolist() == [2, 2, 1]
    assert row["parents"].tolist() == [-1, 0, 0]


def test_who_sees_whom_worked_by_hand() -> None:
    # a prompt of 2; a block of 2 behind it, and one of 1 behind that block; another of 1
    blocks = Blocks([2, 2, 1, 1], [-1, 0, 1, 0], torch.device("cpu"))
    assert blocks.paths[2] == [(0, 2), (2, 4), (4, 5)]
    root, first, grandchild, second = (s if s is None else s.int() for s in blocks.seen(None))
    assert root is None
    assert first.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert grandchild.tolist() == [[1, 1, 1, 1, 1]]
    assert second.tolist() == [[1, 1, 1]]
    # a window of 2: the token itself and the one before it
    root, first, grandchild, second = (s if s is None else s.int() for s in blocks.seen(2))
    assert root is None
    assert first.tolist() == [[0, 1, 1, 0], [0, 0, 1, 1]]
    assert grandchild.tolist() == [[0, 0, 0, 1, 1]]
    assert second.tolist() == [[0, 1, 1]]


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_loss_and_gradients_equal_those_of_separate_rows(tmp_path: Path, model_type: str) -> None:
    policy = build_policy(tmp_path, model_type)
    model = AutoModelForCausalLM.from_pretrained(
        policy.path, dtype=torch.float32, attn_implementation=ATTENTION
    )
    prompt, weights = list(range(9, 21)), [1.0, 0.25]  # longer than the sliding windows
    completions = [[11, 12, 1], [13, 1]]
    shared = weighted_loss(model, collate_row(Row(prompt, completions, weights)), None)
    shared.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.set_attn_implementation("eager")
    total = torch.zeros(())
    for completion, weight in zip(completions, weights, strict=True):
        ids = torch.tensor([prompt + completion])
        logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1]
        losses = torch.nn.functional.cross_entropy(
            logits, torch.tensor(completion), reduction="sum"
        )
        total = total + weight * losses
    plain = total / 5
    plain.backward()
    torch.testing.assert_close(shared, plain, rtol=1e-5, atol=1e-6)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-5)


def test_the_end_token_is_learnt_once(policy) -> None:
    tokenizer = AutoTokenizer.from_pretrained(policy.path)
    rows = tokenize_rows(tokenizer, EXAMPLES, max_tokens=64)
    assert [len(row["completions"]) for row in rows] == [2, 1]
    for row in rows:
        for completion in row["completions"]:
            assert completion.count(tokenizer.eos_token_id) == 1
            assert completion[-1] == tokenizer.eos_token_id
    assert len(tokenize_rows(tokenizer, EXAMPLES, max_tokens=64, share=False)) == 3


def test_a_long_example_is_refused_and_not_cut(policy) -> None:
    tokenizer = AutoTokenizer.from_pretrained(policy.path)
    with pytest.raises(ValueError, match=r"example a takes 12 \+ 9 tokens, above max_tokens=20"):
        tokenize_rows(tokenizer, EXAMPLES, max_tokens=20)


@pytest.mark.parametrize("lora", [None, {"r": 4, "alpha": 8}])
def test_training_lowers_the_loss_and_saves_a_whole_model(policy, lora) -> None:
    params = TrainingParams.model_validate(PARAMS.model_dump() | {"lora": lora})
    trained, figures = SharedPromptTrainer().train(policy, EXAMPLES, params, seed=3)
    assert figures["loss_last"] < figures["loss_first"]
    assert figures["steps"] == 8
    model = AutoModelForCausalLM.from_pretrained(trained.path)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert list(Path(trained.path).glob("*.safetensors"))


def test_the_same_seed_trains_the_same_weights(policy) -> None:
    weights = [
        (
            SharedPromptTrainer().train(policy, EXAMPLES, PARAMS, seed=3)[0].path
            / "model.safetensors"
        ).read_bytes()
        for _ in range(2)
    ]
    assert weights[0] == weights[1]


def test_an_end_token_that_a_user_wrote_is_learnt_as_text(policy) -> None:
    tokenizer = AutoTokenizer.from_pretrained(policy.path)
    (row,) = tokenize_rows(tokenizer, [replace(EXAMPLES[0], completion="a</s>b")], 64)
    (ids,) = row["completions"]
    assert ids.count(tokenizer.eos_token_id) == 1
    assert tokenizer.decode(ids[:-1]) == "a</s>b"


def test_what_was_cut_off_has_no_end_token(policy) -> None:
    tokenizer = AutoTokenizer.from_pretrained(policy.path)
    cut_off = replace(EXAMPLES[1], weight=-1.0, finished=False)
    (row,) = tokenize_rows(tokenizer, [EXAMPLES[0], cut_off], 64)
    end = tokenizer.eos_token_id
    assert [own.count(end) for own in row["completions"]] == [1, 0]
    assert (
        row["completions"][1]
        == tokenizer(cut_off.completion).input_ids[-len(row["completions"][1]) :]
    )


FEW = FewExamplesParams(epochs=4, min_prompts=36, max_prompts=72)


@pytest.mark.parametrize(
    ("n_prompts", "fields", "steps", "epochs"),
    [
        pytest.param(20, {"batch_size": 3, "epochs": 2}, 14, 2.0, id="epochs"),
        pytest.param(20, {"batch_size": 3, "epochs": 2, "max_steps": 5}, 5, 0.75, id="cut"),
        pytest.param(3, {"few_examples": FEW}, 36, 12.0, id="at_least"),
        pytest.param(15, {"few_examples": FEW}, 60, 4.0, id="four_times"),
        pytest.param(24, {"few_examples": FEW}, 72, 3.0, id="at_most"),
        pytest.param(100, {"few_examples": FEW}, 100, 1.0, id="many"),
        pytest.param(24, {"few_examples": FEW, "epochs": 5}, 120, 5.0, id="more_by_epochs"),
        pytest.param(24, {"few_examples": FEW, "batch_size": 2}, 36, 3.0, id="batches"),
        pytest.param(24, {"few_examples": FEW, "max_steps": 12}, 12, 0.5, id="few_and_cut"),
    ],
)
def test_steps_of_few_and_many_prompts(
    n_prompts: int, fields: dict[str, Any], steps: int, epochs: float
) -> None:
    values = {"epochs": 1, "batch_size": 1, "learning_rate": 1e-2, "max_tokens": 64} | fields
    params = TrainingParams(**values)
    assert params.n_steps(n_prompts) == steps
    assert params.n_epochs(n_prompts) == pytest.approx(epochs)


def test_bounds_that_exclude_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="min_prompts=6 is above max_prompts=5: lower min_prompts"):
        FewExamplesParams(epochs=1, min_prompts=6, max_prompts=5)


@pytest.mark.parametrize(
    ("env", "n_examples", "steps"),
    [
        pytest.param("base", 78, 78, id="default"),
        pytest.param("tests", 17, 27, id="tests"),
        # six users of eight documents, eight of six, twelve of five
        pytest.param("own", 9, 36, id="small"),
        pytest.param("own", 15, 60, id="eight_users"),
        pytest.param("own", 21, 72, id="twelve_users"),
    ],
)
def test_few_examples_are_read_several_times(env: str, n_examples: int, steps: int) -> None:
    loader = OmegaConfigLoader(
        str(Path(__file__).parents[2] / "conf"),
        base_env="base",
        default_run_env=env,
        merge_strategy={"parameters": "soft"},
    )
    assert TrainingParams(**loader["parameters"]["sft"]).n_steps(n_examples) == steps


def test_few_examples_are_trained_on_several_times(policy) -> None:
    few = FewExamplesParams(epochs=4, min_prompts=10, max_prompts=20)
    params = PARAMS.model_copy(update={"epochs": 1, "few_examples": few})
    _, figures = SharedPromptTrainer().train(policy, EXAMPLES, params, seed=3)
    assert figures["steps"] == 5  # two prompts, which make up a step


def test_no_example_is_an_error(policy) -> None:
    with pytest.raises(ValueError, match="no training examples"):
        SharedPromptTrainer().train(policy, [], PARAMS, seed=3)


PAIRS = [
    *EXAMPLES[:2],
    TrainingExample(example_id="a", prompt="<s>about ships", completion="No.", weight=-1.0),
]
PREFERENCE = PARAMS.model_copy(
    update={"preference": PreferenceParams(beta=0.5, likelihood=0.25), "epochs": 4}
)


# of the completions below: none, or what stands first in each, but for one that lacks it
FORMAT = [[True, False, False], [True, False], [False] * 4]


@pytest.mark.parametrize("fixed", [None, FORMAT])
@pytest.mark.parametrize("per_token", [False, True])
def test_the_preference_loss_is_dpos_over_separate_rows(policy, per_token: bool, fixed) -> None:
    model = AutoModelForCausalLM.from_pretrained(
        policy.path, dtype=torch.float32, attn_implementation=ATTENTION
    )
    prompt, completions = [9, 10, 11], [[11, 12, 1], [13, 1], [14, 15, 16, 1]]
    start = [8.0, 5.0, 9.5]
    row = collate_row(Row(prompt, completions, [1.0, 1.0, -1.0], fixed))
    params = PreferenceParams(beta=0.5, likelihood=0.25, per_token=per_token)
    loss = preference_loss(model, row | {"start_losses": torch.tensor(start)}, params)
    model.set_attn_implementation("eager")
    gains, n_tokens, total = [], 0, 0.0
    for number, (completion, before) in enumerate(zip(completions, start, strict=True)):
        logits = model(input_ids=torch.tensor([prompt + completion])).logits[0, 2:-1]
        log_p = torch.log_softmax(logits, -1)[range(len(completion)), completion]
        first = int(fixed is not None and fixed[number][0])  # so many tokens are the format's
        varied = log_p[first:].sum()
        gains.append((varied + before) / (len(completion) - first if per_token else 1))
        if completion != completions[-1]:
            n_tokens, total = n_tokens + len(completion), total - log_p.sum()
    margins = [0.5 * (gains[i] - gains[2]) for i in (0, 1)]
    expected = sum(torch.log1p(torch.exp(-m)) for m in margins) / 2 + 0.25 * total / n_tokens
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)


def test_the_format_s_tokens_are_found_where_they_first_stand(policy) -> None:
    tokenizer = AutoTokenizer.from_pretrained(policy.path)  # a token a byte
    fixed = ("Style:", "So:")
    texts = ["Style: a So: b So: c", "a So: b", "Style: a"]
    examples = [
        TrainingExample(example_id="a", prompt="<s>", completion=text, weight=w, fixed=fixed)
        for text, w in zip(texts, (1.0, -1.0, -1.0), strict=True)
    ]
    (row,) = tokenize_rows(tokenizer, examples, 64)
    found = [
        "".join(c for c, is_fixed in zip(text, own[:-1], strict=True) if is_fixed)
        for text, own in zip(texts, row["fixed"], strict=True)
    ]
    assert found == ["Style:So:", "So:", "Style:"]
    assert all(own[-1] for own in row["fixed"])  # and so is the end token
    assert row["fixed"][0][15:18] == [False] * 3  # a second bridge isn't
    (cut_off, whole) = (
        replace(examples[1], finished=False, fixed=()),
        replace(examples[0], fixed=()),
    )
    (row,) = tokenize_rows(tokenizer, [whole, cut_off], 64)
    assert [sum(own) for own in row["fixed"]] == [1, 0]
    assert "fixed" not in tokenize_rows(tokenizer, examples[:1], 64)[0]  # without pairs


def test_pairs_of_responses_leave_out_what_stands_in_front(policy) -> None:
    tokenizer = AutoTokenizer.from_pretrained(policy.path)  # a token a byte
    texts = {"Style: a So: b So: c": " b So: c", "Style: d So: e": " e", "Style: a": "", "b": ""}
    examples = [
        TrainingExample(example_id="a", prompt="<s>", completion=text, weight=w, fixed=own)
        for text, w, own in zip(
            texts, (1.0, -1.0, -1.0, -1.0), [("Style:", "So:")] * 4, strict=True
        )
    ]
    responses = PreferenceParams(beta=1, likelihood=0, compares="response")
    (row,) = tokenize_rows(tokenizer, examples, 64, preference=responses)
    compared = [
        "".join(c for c, is_fixed in zip(text, own[:-1], strict=True) if not is_fixed)
        for text, own in zip(texts, row["fixed"], strict=True)
    ]
    assert compared == list(texts.values())
    # without a reasoning path all of a text is its response
    plain = [replace(example, fixed=()) for example in examples]
    (row,) = tokenize_rows(tokenizer, plain, 64, preference=responses)
    assert all(own == [False] * (len(own) - 1) + [True] for own in row["fixed"])


def test_a_rejected_sample_counts_as_far_as_the_chosen_ones_length_allows(policy) -> None:
    tokenizer = AutoTokenizer.from_pretrained(policy.path)  # a token a byte
    texts = {"abcde": 1.0, "abc": 1.0, "vwxyzvwxyz": -1.0, "vwx": -1.0}
    examples = [
        TrainingExample(
            example_id="a", prompt="<s>", completion=t, weight=w, finished=t != "vwxyzvwxyz"
        )
        for t, w in texts.items()
    ]
    for longest, left in ((None, 0), (1.0, 4), (1.25, 3), (9.0, 0)):
        preference = PreferenceParams(beta=1, likelihood=0, longest_rejected=longest)
        (row,) = tokenize_rows(tokenizer, examples, 64, preference=preference)
        # 6 tokens of the longest chosen one, its end among them; each end is the format's
        assert row["fixed"] == [
            [*[False] * 5, True],
            [*[False] * 3, True],
            [*[False] * (10 - left), *[True] * left],
            [*[False] * 3, True],
        ]


@pytest.mark.parametrize("lora", [None, {"r": 4, "alpha": 8}])
def test_preferences_part_the_chosen_from_the_rejected(policy, lora, monkeypatch) -> None:
    monkeypatch.setattr(sft_trainer, "supports_bfloat16", lambda: False)
    params = TrainingParams.model_validate(PREFERENCE.model_dump() | {"lora": lora})
    trained, figures = SharedPromptTrainer().train(policy, PAIRS, params, seed=3)
    # the first step stands where training starts: every margin is 0, and a pair costs log 2
    model = AutoModelForCausalLM.from_pretrained(policy.path)
    assert figures["loss_first"] == pytest.approx(
        0.6931 + 0.25 * mean_loss(model, policy, PAIRS[:2]), abs=1e-3
    )
    after = AutoModelForCausalLM.from_pretrained(trained.path)

    def margin(of) -> float:
        return mean_loss(of, policy, PAIRS[2:]) - mean_loss(of, policy, PAIRS[:2])

    assert margin(after) > margin(model)


@torch.no_grad()
def mean_loss(model, policy: PolicyCheckpoint, examples: list[TrainingExample]) -> float:
    """Negative log-likelihood per token of some completions of one prompt."""
    tokenizer = AutoTokenizer.from_pretrained(policy.path)
    (row,) = tokenize_rows(tokenizer, examples, 64)
    total = 0.0
    for completion in row["completions"]:
        ids = torch.tensor([row["prompt"] + completion])
        logits = model(input_ids=ids).logits[0, len(row["prompt"]) - 1 : -1]
        total += float(
            torch.nn.functional.cross_entropy(logits, torch.tensor(completion), reduction="sum")
        )
    return total / sum(map(len, row["completions"]))


def test_pairs_and_loss_must_go_together(policy) -> None:
    with pytest.raises(ValueError, match="1 of 3 training examples are rejected"):
        SharedPromptTrainer().train(policy, PAIRS, PARAMS, seed=3)
    with pytest.raises(ValueError, match=r"none of 3 .* raise selection.rejected_per_prompt"):
        SharedPromptTrainer().train(policy, EXAMPLES, PREFERENCE, seed=3)


@pytest.mark.parametrize("preference", [False, True])
def test_the_longest_row_is_worked_through_first_and_leaves_no_trace(
    policy, preference: bool, monkeypatch
) -> None:
    params, examples = (PREFERENCE, PAIRS) if preference else (PARAMS, EXAMPLES)
    long = [
        replace(e, example_id="long", completion=f"{e.completion} We row home at night.")
        for e in examples
    ]
    lengths: list[int] = []
    compute = sft_loop.SharedPromptSFTTrainer.compute_loss

    def noted(self, model, inputs, *given, **named):
        lengths.append(inputs["input_ids"].shape[1])
        return compute(self, model, inputs, *given, **named)

    monkeypatch.setattr(sft_loop.SharedPromptSFTTrainer, "compute_loss", noted)
    tried, figures = SharedPromptTrainer().train(policy, [*examples, *long], params, seed=3)
    assert lengths[0] == max(lengths[1:])
    n_tried = len(lengths)
    monkeypatch.setattr(sft_loop.LongestFirst, "on_train_begin", lambda *a, **k: None)
    plain, expected = SharedPromptTrainer().train(policy, [*examples, *long], params, seed=3)
    assert len(lengths) == 2 * n_tried - 1
    assert figures["loss_mean"] == expected["loss_mean"]
    weights = [(p.path / "model.safetensors").read_bytes() for p in (tried, plain)]
    assert weights[0] == weights[1]


def test_lack_of_memory_in_the_longest_row_names_the_remedy(policy, monkeypatch) -> None:
    def lack(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes")

    monkeypatch.setattr(sft_loop, "weighted_loss", lack)
    with pytest.raises(MemoryError, match=r"while training: lower max_tokens"):
        SharedPromptTrainer().train(policy, EXAMPLES, PARAMS, seed=3)


def test_a_whole_run_has_the_loss_curve_of_trl(policy, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(sft_trainer, "supports_bfloat16", lambda: False)
    examples = [
        TrainingExample(example_id=str(i), prompt=f"<s>about {word}", completion=f"We {word}s.")
        for i, word in enumerate(["sail", "row", "walk", "ride"])
    ]
    params = PARAMS.model_copy(update={"batch_size": len(examples)})
    _, ours = SharedPromptTrainer().train(policy, examples, params, seed=3)
    tokenizer = AutoTokenizer.from_pretrained(policy.path)
    peer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(policy.path, dtype=torch.float32),
        args=SFTConfig(
            output_dir=str(tmp_path),
            per_device_train_batch_size=1,
            gradient_accumulation_steps=params.batch_size,
            num_train_epochs=PARAMS.epochs,
            learning_rate=PARAMS.learning_rate,
            weight_decay=PARAMS.weight_decay,
            optim=PARAMS.optimizer,
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            seed=3,
            data_seed=3,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
        ),
        train_dataset=Dataset.from_list(
            [{"prompt": e.prompt, "completion": e.completion} for e in examples]
        ),
        processing_class=tokenizer,
    )
    mean = peer.train().training_loss
    losses = [entry["loss"] for entry in peer.state.log_history if "loss" in entry]
    assert ours["steps"] == len(losses) == 8
    assert ours["loss_first"] == pytest.approx(losses[0], rel=1e-4)
    assert ours["loss_last"] == pytest.approx(losses[-1], rel=1e-3)
    assert ours["loss_mean"] == pytest.approx(mean, rel=1e-3)
