"""Every parameter of the project: one frozen model per ``params:`` key of the pipelines.

Kedro validates ``conf/`` against these before the first node runs. The paper's value stands beside
each parameter that has one (arXiv 2501.04167); the defaults of the embedded run are in
``conf/base``, chosen for a 135M policy on two CPU cores.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Params(BaseModel):
    """Base of all parameters: unknown names are refused, values can't change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class PassageParams(Params):
    """How long texts are cut into documents."""

    min_words: int = Field(ge=1)
    """A document ends at the first paragraph end after this many words. A shorter rest is left out, and counted."""
    max_words: int = Field(ge=1)
    """A text up to this many words is not cut. A passage that would be longer is left out, and counted; if a text
    has no other, it is cut at sentence ends."""

    @model_validator(mode="after")
    def _order(self) -> PassageParams:
        if self.min_words > self.max_words:
            raise ValueError(
                f"min_words={self.min_words} is above max_words={self.max_words}: lower min_words"
            )
        return self


class ExampleParams(Params):
    """How documents become examples: who is asked for what, and from which profile."""

    setting: Literal["user", "temporal"]
    """LongLaMP's settings. user: no user is in two splits. temporal: each user's last documents
    are held out, and every profile is older than what is asked for."""
    validation_share: float = Field(gt=0, lt=1)
    """Share of the users (user setting) or of each user's targets (temporal) for validation."""
    test_share: float = Field(gt=0, lt=1)
    examples_per_user: dict[Literal["train", "validation", "test"], int]
    """Targets drawn per user, by split."""
    max_users: int | None = Field(default=None, ge=3)
    """Users at most, drawn by seed; none: all."""
    max_profile_size: int = Field(ge=1)
    """Documents in a profile, drawn once per user: at most this many."""
    min_profile_size: int = Field(ge=1)
    """Users with fewer other documents than this are left out, and counted."""
    max_reference_words: int = Field(ge=1)
    """Only documents of at most this many words are asked for; longer ones stay in profiles."""
    n_key_items: int = Field(ge=1)
    """Key items in the request. Few, so that they don't hand over the answer (LongLaMP: 5)."""
    opening_words: int = Field(default=0, ge=0)
    """First words of the text that a request may hold, to be completed: they leave the reference."""


class LongLampParams(Params):
    """Which of LongLaMP's records become examples, and how much of each profile is kept."""

    task: Literal[
        "auto",
        "abstract_generation",
        "product_review",
        "topic_writing",
        "email_completion",
        "mixed",
    ]
    """Names the fields of a record; auto: the field that holds its user tells; mixed: each record says its own, as
    the catalog names them."""
    setting: Literal["user", "temporal"]
    """user: no user may be in two splits. temporal: users are in all three."""
    max_examples: dict[Literal["train", "validation", "test"], int]
    """Examples per task and split at most, drawn by seed (the paper: all)."""
    max_profile_size: int = Field(ge=1)
    """Documents of a profile at most, drawn by seed (the paper: all)."""
    max_document_words: int = Field(ge=1)
    """Words of a profile document at most: single records hold texts of 256 MB. What is cut is
    counted."""
    max_reference_words: int = Field(ge=1)
    """Records with a longer output are left out, and counted."""
    near_copies: Literal["keep", "remove"]
    """Profile documents that hold at least half of the target's runs of 8 words: a system that copies would gain by
    them (the paper doesn't mention them: kept). What is removed is counted in the log, and ``data_statistics`` counts
    what is left."""


QueryKind = Literal["given", "request"]


class RetrievalParams(Params):
    """Which documents of the profile reach the prompt."""

    k: int = Field(ge=1)
    """Documents retrieved per example (the paper: 5, §4.1); a user with fewer gets all of them."""
    query: QueryKind = "given"
    """What is looked for. given: the items that a request lists, or the subject and opening that it quotes; where it
    has neither, all of it. request: always all of it. A policy is saved with the kind that it was trained with."""


class PromptParams(Params):
    """The prompt's budget."""

    max_tokens: int = Field(ge=16)
    """Tokens of the whole prompt, chat markup included (the paper: 5,120 of input)."""
    system: str
    """The system message, where the model's chat template takes one."""


class ResponseFormat(Params):
    """What the policy writes: lead-in, reasoning path, bridge, response (figs. 6 and 7).

    Without reasoning the whole text is the response.
    """

    reasoning: bool
    lead_in: str = ""
    """The fixed sentence in front of the reasoning path."""
    bridge: str = ""
    """The fixed sentence between reasoning path and response: the separator in parsing."""
    max_malformed: float = Field(default=0.75, ge=0, le=1)
    """Share of malformed samples of the fine-tuned policy, above which a run stops. A policy that did not learn the format
    is near 1; small data sets gave up to 0.33 where it was learnt (docs/experiments.md)."""

    @model_validator(mode="after")
    def _sentences(self) -> ResponseFormat:
        if self.reasoning and not (self.lead_in.strip() and self.bridge.strip()):
            raise ValueError(
                f"lead_in={self.lead_in!r} and bridge={self.bridge!r} must both hold a sentence "
                "when reasoning=true: fill them, or set reasoning=false"
            )
        return self


class BasePolicyParams(Params):
    """The language model that everything starts from."""

    source: str = Field(min_length=1)
    """``embedded`` (the weights that the set-up installed), a hub id, or a local directory."""


class Decoding(Params):
    """How text is drawn from a policy."""

    temperature: float = Field(ge=0)
    """Sampling temperature; 0 is greedy."""
    top_p: float = Field(gt=0, le=1)
    """Nucleus mass (the paper doesn't state it)."""
    max_new_tokens: int = Field(ge=1)
    """Tokens per sample, reasoning path included (the paper: 1,536)."""


class ExpectationParams(Params):
    """The expectation step: what is drawn for each training prompt (Alg. 1)."""

    samples_per_prompt: int = Field(ge=1)
    """m, the exploration budget (the paper: 32; 8 to 128 gave much the same)."""
    decoding: Decoding
    """The paper: temperature 0.7."""

    @model_validator(mode="after")
    def _varied(self) -> ExpectationParams:
        if self.decoding.temperature == 0 and self.samples_per_prompt > 1:
            raise ValueError(
                f"temperature=0 draws the same sample {self.samples_per_prompt} times: raise "
                "decoding.temperature, or set samples_per_prompt=1"
            )
        return self


class SelectionParams(Params):
    """Which scored samples the maximization step learns from (§3.3, App. B)."""

    threshold: float = Field(ge=-1, le=1)
    """τ: the least reward (absolute), or the least advantage over the prompt's own mean."""
    relative_to: Literal["zero", "prompt_mean"]
    """What τ is measured from (the paper: zero, with τ = 1.0 on its judge's scale)."""
    max_per_prompt: int = Field(ge=1)
    """The cap on kept samples per prompt (the paper: 10)."""
    weighting: Literal["uniform", "reward"]
    """Weight of a kept sample in the loss (the paper: reward; at its τ = 1.0 that is uniform)."""
    rejected_per_prompt: int = Field(default=0, ge=0)
    """Samples of a prompt that go along with its best, for ``maximization.preference`` (the paper: none):
    first those that can't be kept, then the worst."""
    reject_loops: bool = True
    """Whether a response that says four words four times or more can't be kept, as one that did not end or can't
    be parsed never is (the paper doesn't say); false for users who write so, in songs or forms."""

    @property
    def learnt_per_prompt(self) -> int:
        """Samples of a prompt that an M-step reads at most."""
        return self.max_per_prompt + self.rejected_per_prompt


class LoraParams(Params):
    """Low-rank adapters, trained in place of all weights."""

    r: int = Field(ge=1)
    alpha: int = Field(ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    merge: bool = True
    """Whether the saved policy is a whole model. If not, it holds the adapters alone (a hundredth of the
    size, or less), is merged whenever it is loaded, and needs the policy that it was trained from."""
    bits: Literal[4] | None = None
    """Bits of a frozen weight while adapters are trained (QLoRA; needs a GPU and bitsandbytes, not run
    here); none: 16 where the hardware multiplies bfloat16, else 32."""


class PreferenceParams(Params):
    """Learning from a prompt's best samples against its worst (beyond the paper).

    The loss of a pair is DPO's (arXiv 2305.18290, eq. 7), its reference the policy that the step starts
    from; beside it stands the best sample's likelihood, so that it doesn't fall along with the other's, and
    so that format and length, of which the pairs say nothing, stay as they are.
    """

    compares: Literal["sample", "response"] = "sample"
    """What of two samples is compared: all that they chose to write; or their responses alone, each behind the
    reasoning path that led to it. The reward saw no path, so what a path adds to a pair is mostly noise; paths are
    then learnt by the best samples' likelihood."""
    longest_rejected: float | None = Field(default=None, gt=0)
    """A rejected sample counts up to so many times the chosen one's tokens; none: whole. One that didn't end is
    the longest of its prompt, and DPO's sum over all of its tokens makes a policy's texts shorter and shorter."""
    beta: float = Field(gt=0)
    """How much a change of the log-likelihood ratio counts; smaller lets the policy move further."""
    per_token: bool = False
    """Whether log-likelihoods are means over tokens (length-normalised DPO, arXiv 2411.15124, §5), against
    longer texts; here it did not hold the length. ``beta`` then counts per token: some 100 times as large."""
    likelihood: float = Field(ge=0)
    """Weight of the best samples' negative log-likelihood per token."""


class FewExamplesParams(Params):
    """How often few examples are read: a policy shall learn the response format from them, and not their texts by heart."""

    epochs: float = Field(gt=0)
    """Times that each is read, within the bounds below."""
    min_prompts: int = Field(ge=1)
    """Prompts that are read at least, one after the other; with fewer the format is not learnt."""
    max_prompts: int = Field(ge=1)
    """Prompts that are read at most; with more examples than that, the training's own ``epochs`` count."""

    @model_validator(mode="after")
    def _order(self) -> FewExamplesParams:
        if self.min_prompts > self.max_prompts:
            raise ValueError(
                f"min_prompts={self.min_prompts} is above max_prompts={self.max_prompts}: lower min_prompts"
            )
        return self

    def n_read(self, n_prompts: int) -> float:
        """Return how many prompts are read of so many."""
        return min(max(self.epochs * n_prompts, self.min_prompts), self.max_prompts)


class TrainingParams(Params):
    """One supervised training on completions (App. A)."""

    epochs: float = Field(gt=0)
    """The paper trains at most 10,000 steps of 64 and keeps the best checkpoint on validation."""
    max_steps: int | None = Field(default=None, ge=1)
    """Optimiser steps at most, where epochs would be more (the paper: 10,000)."""
    few_examples: FewExamplesParams | None = None
    """How often few examples are read; none: ``epochs`` times, however few they are."""
    batch_size: int = Field(ge=1)
    """Prompts per optimiser step (the paper: 64)."""
    learning_rate: float = Field(gt=0)
    """Peak, decayed linearly (the paper: 5e-6)."""
    warmup_ratio: float = Field(default=0.0, ge=0, lt=1)
    """Share of the steps that warm up (the paper: 250 of 10,000)."""
    weight_decay: float = Field(default=0.01, ge=0)
    """The paper: 0.01."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """The paper: 1.0."""
    optimizer: Literal["adamw_torch", "adafactor"] = "adamw_torch"
    """The paper: Adafactor."""
    max_tokens: int = Field(ge=16)
    """Tokens of one prompt with one completion; a longer one is refused, never cut."""
    lora: LoraParams | None = None
    preference: PreferenceParams | None = None
    """Learn from pairs of samples; none: from the likelihood of what was kept (the paper)."""

    def n_steps(self, n_prompts: int) -> int:
        """Return the optimiser steps of a training on so many prompts."""
        epochs = self.epochs
        if self.few_examples and n_prompts:
            epochs = max(epochs, self.few_examples.n_read(n_prompts) / n_prompts)
        steps = math.ceil(epochs * math.ceil(n_prompts / self.batch_size))
        return min(steps, self.max_steps or steps)

    def n_epochs(self, n_prompts: int) -> float:
        """Return how often a training on so many prompts reads each of them."""
        steps = self.n_steps(n_prompts)
        if steps == math.ceil(self.epochs * math.ceil(n_prompts / self.batch_size)):
            return self.epochs
        return steps * self.batch_size / n_prompts


class MaximizationParams(TrainingParams):
    """The maximization step: training on the selected samples."""

    start: Literal["base", "sft", "previous"]
    """The weights that each iteration starts from (the paper: base). With ``preference`` the base policy has the
    format to learn by the likelihood term alone: 39 steps did not teach the 135M policy (docs/experiments.md)."""


class EvaluationParams(Params):
    """How policies are compared on held-out users."""

    samples_per_prompt: int = Field(ge=1)
    decoding: Decoding
    """The paper: temperature 0.1."""
    n_bootstrap: int = Field(ge=100)
    """Bootstrap resamples of users, for the intervals."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    splits: tuple[Literal["validation", "test"], ...] = Field(("validation", "test"), min_length=1)
    """Whose prompts are answered. Settings are chosen with validation alone (``--env search``)."""


class ProfilePlanParams(Params):
    """What is kept of each user, and searched, in a dry run."""

    documents: int = Field(ge=1)
    """Of a user."""
    tokens: int = Field(ge=1)
    """Of a document."""
    embedder_weights: int = Field(ge=1)
    """Weights of the products in the encoder's layers."""
    embedding_size: int = Field(ge=1)
    """Numbers of a vector, in float32."""


class PlanParams(Params):
    """What a dry run needs to know beside the parameters of the run itself."""

    examples: dict[Literal["train", "validation", "test"], int]
    """Examples per split."""
    output_tokens: int = Field(ge=1)
    """Tokens of a text, reasoning path included: what is expected, not the limit."""
    operations_per_second: float = Field(gt=0)
    """What all devices together really do, not what they are said to reach at best."""
    policy: str | dict[str, Any]
    """``embedded``, a hub id, a directory; or its sizes, by the names of its config.json."""
    judge: str | dict[str, Any] | None = None
    """The language model of the reward, in the same ways; none: the reward has none."""
    teacher: str | dict[str, Any] | None = None
    """The language model that writes reasoning paths, in the same ways; none: the statistical teacher."""
    profile: ProfilePlanParams | None = None
    """Of each example's user; none: retrieval isn't counted."""
    checked_records: int = Field(default=1000, ge=1)
    """Of the data, from its start: so many are read and checked."""


class DoctorParams(Params):
    """What ``kedro doctor`` needs to know beside the parameters of the run itself."""

    examples: int = Field(ge=8)
    """Examples whose profiles and prompts are really made, at most; drawn evenly, they stand for all."""
    price_per_hour: float = Field(default=0.0, ge=0)
    """What an hour of this machine costs, in any currency; 0: only time is estimated."""


class ServingLimits(Params):
    """What a served policy takes at once; more is refused, not cut."""

    max_requests: int = Field(ge=1)
    """Requests of one call."""
    max_documents: int = Field(ge=1)
    """Documents of one request."""
    max_characters: int = Field(ge=1)
    """Of one request as JSON, its documents included."""


class ShipParams(Params):
    """How a policy is registered, and what its cards say."""

    name: str = Field(min_length=1)
    """Of the registered model."""
    limits: ServingLimits
    traces: bool
    """Whether a served policy has MLflow keep a trace of each answer: it holds the user's texts."""
    license: str
    """Of the policy's weights, as the hub names it: that of what they were trained from."""
    data_license: str
    """Of the users' documents."""
    language: str


class CalibrationParams(Params):
    """How the reward is calibrated on users outside the test."""

    passages_per_user: int = Field(ge=2)
    """Passages drawn of each user; scoring time grows with them."""
    attacked_examples: int = Field(default=8, ge=1)
    """Validation examples on which every attack is tried."""
    n_bootstrap: int = Field(ge=100)
    """Bootstrap resamples of users, for the intervals."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1)


GROUPS: dict[str, type[Params]] = {
    "passages": PassageParams,
    "examples": ExampleParams,
    "longlamp": LongLampParams,
    "retrieval": RetrievalParams,
    "prompt": PromptParams,
    "response_format": ResponseFormat,
    "direct_response_format": ResponseFormat,
    "base_policy": BasePolicyParams,
    "expectation": ExpectationParams,
    "selection": SelectionParams,
    "sft": TrainingParams,
    "maximization": MaximizationParams,
    "evaluation": EvaluationParams,
    "plan": PlanParams,
    "doctor": DoctorParams,
    "ship": ShipParams,
    "calibration": CalibrationParams,
}
"""The model of each group of parameters: what isn't among its fields is refused at the start of every session."""
