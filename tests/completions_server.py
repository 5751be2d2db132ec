"""A small server behind OpenAI's completions, built on the standard library: a real model answers."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from rest_pg.records import PolicyCheckpoint


class CompletionsServer:
    """Serves one policy on 127.0.0.1; its attributes say what goes wrong."""

    def __init__(self, policy: PolicyCheckpoint, name: str = "model") -> None:
        self.model = AutoModelForCausalLM.from_pretrained(policy.path, dtype=torch.float32).eval()
        self.name, self.root = name, str(policy.path)
        self.busy: list[str] = []
        """What ``Retry-After`` says in the next answers, each of which is 503, or 429 if the list is long."""
        self.changes: dict[str, Any] = {}
        """What each sample of an answer says instead."""
        self.failures = 0
        """Requests that are answered with an error, from now on."""
        self.refuses = False
        self.delay = 0.0
        self.shows_tokens = True
        self.requests: list[dict[str, Any]] = []
        self.headers: list[str | None] = []
        self._one = threading.Lock()
        own = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path != "/v1/models":
                    self.send_error(404)
                    return
                own.headers.append(self.headers["Authorization"])
                self._answer({"data": [{"id": own.name, "root": own.root}]})

            def do_POST(self) -> None:
                if self.path != "/v1/completions":
                    self.send_error(404)
                    return
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                time.sleep(own.delay)
                own.requests.append(body)
                if own.busy:
                    self.send_response(429 if len(own.busy) > 1 else 503)
                    self.send_header("Retry-After", own.busy.pop(0))
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                if own.failures:
                    own.failures -= 1
                    self.send_error(500, "out of order")
                    return
                # vLLM refuses several samples where nothing is drawn
                if own.refuses or (body["temperature"] == 0 and body["n"] > 1):
                    self.send_error(400, "n must be 1 when using greedy sampling")
                    return
                self._answer({"choices": own.complete(body)})

            def _answer(self, content: object) -> None:
                data = json.dumps(content).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    @torch.inference_mode()
    def complete(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        prompt = torch.tensor([body["prompt"]] * body["n"])
        sampled = body["temperature"] > 0
        with self._one:
            torch.manual_seed(body["seed"])
            written = self.model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=body["max_tokens"],
                do_sample=sampled,
                eos_token_id=body.get("stop_token_ids"),
                **({"temperature": body["temperature"], "top_p": body["top_p"]} if sampled else {}),
            )[:, prompt.shape[1] :].tolist()
        choices = [self._choice(i, body, tokens) for i, tokens in enumerate(written)]
        return choices[::-1]  # the order isn't promised

    def _choice(self, index: int, body: dict[str, Any], tokens: list[int]) -> dict[str, Any]:
        from conftest import build_tokenizer

        ends = [i for i, token in enumerate(tokens) if token in body.get("stop_token_ids", ())]
        kept = tokens[: ends[0] + 1] if ends else tokens
        text = build_tokenizer().decode(kept[:-1] if ends else kept, skip_special_tokens=True)
        choice: dict[str, Any] = {
            "index": index,
            "text": text,
            "finish_reason": "stop" if ends else "length",
            **({"token_ids": kept} if self.shows_tokens else {}),
        } | self.changes
        if wanted := body.get("logprob_token_ids"):
            logits = self.model(torch.tensor([body["prompt"]])).logits[0, -1].log_softmax(-1)
            choice["logprobs"] = {
                "top_logprobs": [{f"token_id:{token}": logits[token].item() for token in wanted}]
            }
        return choice

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
