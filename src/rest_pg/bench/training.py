"""Training on k samples of one prompt: against TRL's SFTTrainer, padded and packed (bfd)."""

from __future__ import annotations

import tempfile
from functools import partial
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from rest_pg.backends.models import load_tokenizer, supports_bfloat16
from rest_pg.backends.sft_trainer import SharedPromptTrainer
from rest_pg.bench.common import Comparison, base_policy, compare, texts
from rest_pg.config import TrainingParams
from rest_pg.records import TrainingExample

K, PROMPT, STEPS = 4, 512, 2
LENGTHS = (90, 130, 170, 210)
"""Tokens of a prompt's samples: unequal, as samples are; 150 in the mean."""


def run(repeats: int) -> list[Comparison]:
    """Compare two optimiser steps of one prompt each, loading and saving included."""
    prompts = texts(STEPS, PROMPT, offset=60)
    examples = [
        TrainingExample(example_id=str(i), prompt=prompt, completion=completion)
        for i, prompt in enumerate(prompts)
        for completion in (texts(1, n, offset=80 + 4 * i + j)[0] for j, n in enumerate(LENGTHS))
    ]
    rows = []
    for lora in (None, {"r": 16, "alpha": 32}):
        params = TrainingParams.model_validate(
            {"epochs": 1, "batch_size": 1, "learning_rate": 1e-5, "max_tokens": 2048, "lora": lora}
        )
        # what packing changes shows with adapters, in half the time
        for packing in (False, True) if lora else (False,):
            rows.append(
                compare(
                    "training",
                    f"k={K} P={PROMPT} L=150 {'LoRA' if lora else 'full'}"
                    f"{' against bfd' if packing else ''}",
                    "trl",
                    "s",
                    partial(_ours, examples, params),
                    partial(_theirs, examples, params, packing),
                    repeats,
                )
            )
    return rows


def _ours(examples: list[TrainingExample], params: TrainingParams) -> int:
    SharedPromptTrainer().train(base_policy(), examples, params, seed=7)
    return len(examples)


def _theirs(examples: list[TrainingExample], params: TrainingParams, packing: bool) -> int:
    """Train as TRL's documentation shows, k samples per step; save the merged model, as ours does."""
    tokenizer = load_tokenizer(base_policy())
    model: Any = AutoModelForCausalLM.from_pretrained(
        base_policy().path, dtype=torch.float32, trust_remote_code=False, use_safetensors=True
    )
    rows = [{"prompt": e.prompt, "completion": e.completion} for e in examples]
    with tempfile.TemporaryDirectory() as scratch:
        trainer = SFTTrainer(
            model=model,
            args=SFTConfig(
                output_dir=scratch,
                # packed rows hold about two samples each: as many samples per step
                per_device_train_batch_size=2 if packing else K,
                packing=packing,
                packing_strategy="bfd",
                num_train_epochs=1,
                learning_rate=params.learning_rate,
                max_length=2 * (PROMPT + max(LENGTHS)) + 8 if packing else 1024,
                gradient_checkpointing=False,
                completion_only_loss=True,
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
            peft_config=LoraConfig(
                r=params.lora.r, lora_alpha=params.lora.alpha, target_modules="all-linear"
            )
            if params.lora
            else None,
        )
        trainer.train()
        trained: Any = trainer.model
        (trained.merge_and_unload() if params.lora else trained).save_pretrained(scratch)
    return len(examples)
