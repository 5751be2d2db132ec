"""One EM iteration, sampling to trained policy: against transformers and TRL as documented."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from rest_pg.backends.models import load_model, load_tokenizer, supports_bfloat16
from rest_pg.backends.protocols import GenerationRequest, Target
from rest_pg.backends.rewards import CompositeReward
from rest_pg.backends.sft_trainer import SharedPromptTrainer
from rest_pg.backends.shared_prefix import SharedPrefixGenerator
from rest_pg.bench.common import Comparison, compare, endless_policy, texts
from rest_pg.config import Decoding, TrainingParams
from rest_pg.records import Sample, TrainingExample

N, M, KEPT, PROMPT = 6, 8, 2, 512
DECODING = Decoding(temperature=0.7, top_p=0.95, max_new_tokens=128)
PARAMS = TrainingParams.model_validate(
    {
        "epochs": 1,
        "batch_size": 2,
        "learning_rate": 1e-4,
        "max_tokens": 2048,
        "lora": {"r": 16, "alpha": 32},
    }
)


def run(repeats: int) -> list[Comparison]:
    """Compare sampling, scoring, selection and training over six prompts."""
    prompts = texts(N, PROMPT, offset=100)
    targets = {
        str(i): Target(input="", reference=text) for i, text in enumerate(texts(N, 120, offset=140))
    }
    reward = CompositeReward({"similarity": 0.5, "rouge_l": 0.5})

    def ours() -> int:
        requests = [
            GenerationRequest(example_id=str(i), prompt=prompt, seeds=tuple(range(M)))
            for i, prompt in enumerate(prompts)
        ]
        drawn = SharedPrefixGenerator(max_rows=64).generate(endless_policy(), requests, DECODING)
        written = [(g.example_id, g.text) for g in drawn]
        kept = _keep(prompts, written, reward, targets)
        SharedPromptTrainer().train(endless_policy(), kept, PARAMS, seed=7)
        return len(written)

    def theirs() -> int:
        written = _generate(prompts)
        kept = _keep(prompts, written, reward, targets)
        _train(kept)
        return len(written)

    case = f"N={N} m={M} P={PROMPT} k={KEPT} LoRA"
    return [compare("iteration", case, "transformers+trl", "s", ours, theirs, repeats)]


def _keep(
    prompts: Sequence[str],
    written: Sequence[tuple[str, str]],
    reward: CompositeReward,
    targets: dict[str, Target],
) -> list[TrainingExample]:
    """Score all texts and keep the best of each prompt: the same code on both sides."""
    samples = [
        Sample(
            example_id=example_id,
            sample_index=i,
            text=text,
            reasoning_path="",
            response=text,
            malformed="",
            finished=True,
            n_tokens=0,
        )
        for i, (example_id, text) in enumerate(written)
    ]
    ranked = sorted(
        zip(samples, reward.score(samples, targets), strict=True),
        key=lambda pair: -pair[1].reward,
    )
    kept: dict[str, list[TrainingExample]] = {}
    for sample, _ in ranked:
        own = kept.setdefault(sample.example_id, [])
        if len(own) < KEPT:
            prompt = prompts[int(sample.example_id)]
            own.append(
                TrainingExample(
                    example_id=sample.example_id, prompt=prompt, completion=sample.response
                )
            )
    return [example for own in kept.values() for example in own]


@torch.inference_mode()
def _generate(prompts: Sequence[str]) -> list[tuple[str, str]]:
    """All samples of a prompt in one call: every prompt is the same length for ``generate``."""
    tokenizer: Any = load_tokenizer(endless_policy())
    dtype = torch.bfloat16 if supports_bfloat16() else torch.float32
    model = load_model(endless_policy(), dtype).eval()
    written = []
    for i, prompt in enumerate(prompts):
        inputs = tokenizer(prompt, return_tensors="pt")
        output = model.generate(
            **inputs,
            do_sample=True,
            temperature=DECODING.temperature,
            top_p=DECODING.top_p,
            top_k=0,
            num_return_sequences=M,
            max_new_tokens=DECODING.max_new_tokens,
        )
        texts_ = tokenizer.batch_decode(output[:, inputs.input_ids.shape[1] :])
        written += [(str(i), text) for text in texts_]
    return written


def _train(examples: Sequence[TrainingExample]) -> None:
    tokenizer = load_tokenizer(endless_policy())
    model: Any = AutoModelForCausalLM.from_pretrained(
        endless_policy().path, dtype=torch.float32, trust_remote_code=False, use_safetensors=True
    )
    rows = [{"prompt": e.prompt, "completion": e.completion} for e in examples]
    with tempfile.TemporaryDirectory() as scratch:
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(
                output_dir=scratch,
                per_device_train_batch_size=PARAMS.batch_size * KEPT,
                num_train_epochs=1,
                learning_rate=PARAMS.learning_rate,
                max_length=1024,
                gradient_checkpointing=False,
                bf16=supports_bfloat16(),
                use_cpu=not torch.cuda.is_available(),
                dataloader_pin_memory=False,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                seed=7,
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
        )
        trainer.train()
        trained: Any = trainer.model
        trained.merge_and_unload().save_pretrained(scratch)
