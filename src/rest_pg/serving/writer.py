"""A policy that answers requests outside a run: with its retriever, its prompts and its format.

:class:`Writer` does what the inference pipeline does, by the same functions: the same seed gives the same text.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import mlflow
from kedro.utils import load_obj
from mlflow.entities import SpanType
from pydantic import BaseModel, ConfigDict, Field

from rest_pg.backends.protocols import (
    Generation,
    GenerationRequest,
    Generator,
    Retriever,
    Reward,
    Target,
)
from rest_pg.config import (
    Decoding,
    EvaluationParams,
    PromptParams,
    ResponseFormat,
    RetrievalParams,
    ServingLimits,
)
from rest_pg.method.retrieval import count_short_profiles, retrieve_profiles
from rest_pg.pipelines.inference.nodes import answer_requests, read_requests, to_answer
from rest_pg.pipelines.reasoning_path.nodes import create_prompts
from rest_pg.pipelines.self_training.nodes import sample_seed
from rest_pg.records import Answer, PolicyCheckpoint, Profile, Prompt
from rest_pg.responses import parse_generation


class BackendSettings(BaseModel):
    """A back-end by its dotted path and arguments, as the catalog names it."""

    model_config = ConfigDict(extra="forbid")

    backend: str
    arguments: dict[str, Any] = Field(default_factory=dict)

    def build(self) -> Any:
        """Return a new instance."""
        return load_obj(self.backend)(**self.arguments)


class WriterSettings(BaseModel):
    """All that a writer is made of beside its weights and its template."""

    model_config = ConfigDict(extra="forbid")

    retriever: BackendSettings
    generator: BackendSettings
    retrieval: RetrievalParams
    prompt: PromptParams
    response_format: ResponseFormat
    decoding: Decoding
    limits: ServingLimits
    traces: bool = False
    """Whether MLflow keeps a trace of each answer: it holds the user's texts."""
    seed: int


class Writer:
    """Answers requests of any user with one policy; calls from several threads wait for each other."""

    def __init__(self, policy: PolicyCheckpoint, template: str, settings: WriterSettings) -> None:
        """Take the policy, the text of the response template, and the settings."""
        self._policy, self._template, self._settings = policy, template, settings
        self._retriever: Retriever = settings.retriever.build()
        self._generator: Generator = settings.generator.build()
        # one model, one batch: two threads would share its buffers
        self._lock = threading.Lock()

    def answer(self, requests: Sequence[Mapping[str, Any]], seed: int) -> list[Answer]:
        """Answer requests, each ``{user, request, documents}``.

        Raises:
            ValueError: a request is malformed, or there is more than the limits allow.
        """
        self._check_size(requests)
        # one sample of each, decoded as in evaluation; intervals play no part here
        params = EvaluationParams(
            samples_per_prompt=1, decoding=self._settings.decoding, n_bootstrap=100
        )
        with self._lock, self._span("answer", SpanType.CHAIN, requests) as whole:
            prompts, profiles = self._ask(requests)
            with self._span("write", SpanType.LLM, [p.text for p in prompts]) as span:
                answers = answer_requests(
                    self._policy,
                    prompts,
                    profiles,
                    self._generator,
                    self._settings.response_format,
                    params,
                    seed,
                )
                span.set_outputs([asdict(answer) for answer in answers])
            whole.set_outputs([answer.response for answer in answers])
        return answers

    def stream(self, request: Mapping[str, Any], seed: int) -> Iterator[dict[str, Any]]:
        """Answer one request while it is written; others wait until it is read to its end, or closed.

        Yields:
            ``{"piece": text}`` as the policy writes, reasoning path included; then the whole answer, as
            :meth:`answer` gives it.

        Raises:
            ValueError: as :meth:`answer`.
        """
        self._check_size([request])
        with self._lock:
            (prompt,), (profile,) = self._ask([request])
            for piece in self._write(prompt, seed):
                if isinstance(piece, str):
                    yield {"piece": piece}
                else:
                    sample = parse_generation(piece, self._settings.response_format)
                    yield asdict(to_answer(sample, prompt, profile))

    def trace(
        self, request: Mapping[str, Any], reference: str, reward: Reward, seed: int
    ) -> Answer:
        """Answer one request with a trace of each part: retrieve, prompt, reason, respond, score.

        Args:
            request: as in :meth:`answer`.
            reference: what the user really wrote, for the score.
            reward: what scores it.
            seed: of the draw.
        """
        bridge = self._settings.response_format.bridge
        text = ""
        with self._lock, self._span("answer", SpanType.CHAIN, request) as whole:
            (prompt,), (profile,) = self._ask([request])
            pieces = self._write(prompt, seed)
            generation: Generation | None = None
            if self._settings.response_format.reasoning:
                with self._span("reason", SpanType.LLM, prompt.text) as span:
                    for piece in pieces:
                        if not isinstance(piece, str):
                            generation = piece
                            break
                        text += piece
                        if bridge in text:
                            break
                    span.set_outputs(text)
            with self._span("respond", SpanType.LLM, text) as span:
                for piece in pieces:
                    if not isinstance(piece, str):
                        generation = piece
                assert generation is not None  # the last thing that an engine yields
                sample = parse_generation(generation, self._settings.response_format)
                span.set_outputs(sample.response)
            with self._span("score", SpanType.EVALUATOR, sample.response) as span:
                targets = {prompt.example_id: Target(input=prompt.input, reference=reference)}
                (score,) = reward.score([sample], targets)
                span.set_outputs(asdict(score))
            answer = to_answer(sample, prompt, profile)
            whole.set_outputs(asdict(answer))
        return answer

    def _ask(self, requests: Sequence[Mapping[str, Any]]) -> tuple[list[Prompt], list[Profile]]:
        examples = read_requests(requests)
        with self._span("retrieve", SpanType.RETRIEVER, requests) as span:
            params = self._settings.retrieval
            profiles = retrieve_profiles(examples, self._retriever, params)
            span.set_attributes(
                {
                    "k": params.k,
                    "query": params.query,
                    "short_profiles": count_short_profiles(examples, params.k),
                }
            )
            span.set_outputs([asdict(profile) for profile in profiles])
        with self._span("prompt", SpanType.PARSER, [e.input for e in examples]) as span:
            prompts, _ = create_prompts(
                examples,
                profiles,
                self._policy,
                self._template,
                self._settings.response_format,
                self._settings.prompt,
            )
            span.set_outputs([prompt.text for prompt in prompts])
        return prompts, profiles

    def _write(self, prompt: Prompt, seed: int) -> Iterator[str | Generation]:
        asked = GenerationRequest(
            example_id=prompt.example_id,
            prompt=prompt.text,
            seeds=(sample_seed(seed, "inference", prompt.example_id, 0),),
        )
        decoding = self._settings.decoding
        if hasattr(self._generator, "stream"):
            yield from self._generator.stream(self._policy, asked, decoding)
        else:  # in one piece
            (whole,) = self._generator.generate(self._policy, [asked], decoding)
            yield from (whole.text, whole)

    def _check_size(self, requests: Sequence[Mapping[str, Any]]) -> None:
        limits = self._settings.limits
        if len(requests) > limits.max_requests:
            raise ValueError(
                f"{len(requests)} requests are above max_requests={limits.max_requests}: send fewer "
                "at once"
            )
        for number, request in enumerate(requests, start=1):
            documents = request.get("documents")
            n_documents = len(documents) if isinstance(documents, (list, tuple)) else 0
            if n_documents > limits.max_documents:
                raise ValueError(
                    f"request {number} holds {n_documents} documents, above "
                    f"max_documents={limits.max_documents}: send the latest ones"
                )
            size = len(json.dumps(request, default=str))
            if size > limits.max_characters:
                raise ValueError(
                    f"request {number} holds {size} characters, above "
                    f"max_characters={limits.max_characters}: send fewer or shorter documents"
                )

    @contextmanager
    def _span(self, name: str, kind: str, inputs: Any) -> Iterator[Any]:
        """Open a span of MLflow's, if traces are kept."""
        if not self._settings.traces:
            yield _NoSpan()
            return
        with mlflow.start_span(name, span_type=kind) as span:
            span.set_inputs(inputs)
            yield span


class _NoSpan:
    def set_outputs(self, outputs: Any) -> None:
        """Forget them."""

    def set_attributes(self, attributes: Any) -> None:
        """Forget them."""
