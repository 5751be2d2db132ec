"""Running OpenAI-compatible servers behind the protocols: a generator, and a judge's language model.

A server answers with whatever weights it holds, so each is asked for them before any prompt is sent: one that
can't show the policy at hand is refused by name.
"""

from __future__ import annotations

import hashlib
import logging
import os
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import requests

from rest_pg.backends.engine_generator import EngineGenerator, EngineLevelScorer
from rest_pg.backends.engines import Ask, Written
from rest_pg.backends.vllm_weights import differing_weights
from rest_pg.checksums import policy_fingerprint
from rest_pg.progress import track
from rest_pg.records import PolicyCheckpoint

logger = logging.getLogger(__name__)

NAME = "policy-"
"""What the names begin with that policies have on servers."""
UNKNOWN = f"{NAME}unknown"
LOADING = (
    "a server that does is vLLM's, started with VLLM_SERVER_DEV_MODE=1 and --worker-extension-cls "
    "rest_pg.backends.vllm_worker.WeightReader on a policy of the same architecture"
)
CONNECT_SECONDS = 10.0
BUSY = 429
MAY_ASK_TO_WAIT = (BUSY, 503)
SHORTEST_WAIT = 0.5
"""Seconds, where a server that is busy asks for less."""
NEUTRAL = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
"""Else a server may take these from the model's own files."""


class ServerError(RuntimeError):
    """A server didn't do what it was asked for; the message names it."""


class RefusalError(ServerError):
    """A server answered that the request itself is at fault: to ask again would change nothing."""


class Servers:
    """Servers that hold the same policy; see :class:`~rest_pg.backends.engines.Engine`."""

    def __init__(
        self,
        addresses: Sequence[str],
        timeout_seconds: float = 600.0,
        requests_per_server: int = 16,
        load_policies: bool = False,
        key_variable: str = "",
    ) -> None:
        """Name the servers; none is asked anything yet.

        Args:
            addresses: base URLs as OpenAI's clients take them, such as ``http://127.0.0.1:8000/v1``.
            timeout_seconds: for one prompt with all of its samples.
            requests_per_server: prompts that a server works on at once.
            load_policies: put the policy asked for into servers that hold another, in place:
                :data:`LOADING`, and each sees the policy's directory.
            key_variable: environment variable that holds the servers' key; empty: they need none.

        Raises:
            ValueError: there is no address, one isn't a URL, or a number isn't positive.
        """
        if not addresses or not all(a.startswith(("http://", "https://")) for a in addresses):
            raise ValueError(f"servers={list(addresses)} must be URLs: http://HOST:PORT/v1")
        if timeout_seconds <= 0 or requests_per_server < 1:
            raise ValueError(
                f"timeout_seconds={timeout_seconds} and requests_per_server={requests_per_server} "
                "must be positive: raise them"
            )
        self._addresses = [address.rstrip("/") for address in addresses]
        self._timeout = (CONNECT_SECONDS, timeout_seconds)
        self._n_each, self._load_policies = requests_per_server, load_policies
        key = os.environ.get(key_variable, "") if key_variable else ""
        self._headers = {"Authorization": f"Bearer {key}"} if key else {}

    def write(
        self, policy: PolicyCheckpoint, asks: Sequence[Ask], task: str
    ) -> list[list[Written]]:
        """Go on from every text, spread over the servers: whichever is free takes the next.

        A server takes one seed per text, the first; it draws the text's samples from that. A request that
        fails is tried once more, on another server if there is one.

        Raises:
            ServerError: a server holds another policy, or a request failed twice.
        """
        models = {address: self._model_of(address, policy) for address in self._addresses}
        todo: queue.SimpleQueue[int] = queue.SimpleQueue()
        for i in range(len(asks)):
            todo.put(i)
        done: queue.SimpleQueue[tuple[int, list[Written] | Exception]] = queue.SimpleQueue()
        stop = threading.Event()
        for address in self._addresses[: len(asks)] * self._n_each:
            arguments = (address, models, asks, todo, done, stop)
            threading.Thread(target=self._work, args=arguments, daemon=True).start()
        written: dict[int, list[Written]] = {}
        bar = track(task, sum(len(ask.seeds) for ask in asks), "sample")
        try:
            while len(written) < len(asks):
                i, result = done.get()
                if isinstance(result, Exception):
                    raise result
                written[i] = result
                bar.count_tokens(sum(len(own.tokens) for own in result))
                bar.update(len(result))
        finally:
            stop.set()
            bar.close()
        return [written[i] for i in range(len(asks))]

    def close(self) -> None:
        """Leave the servers as they are: others started them."""

    # ---- which policy a server holds -----------------------------------------------------------

    def _model_of(self, address: str, policy: PolicyCheckpoint) -> str:
        """Return what a server calls the policy; raise if it holds another, or can't tell."""
        answer = self._ask_server("GET", f"{address}/models")
        try:
            cards = [(_text(card, "id"), card.get("root")) for card in answer["data"]]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ServerError(f"{address} can't say which models it serves: {error!r}.") from error
        # what was put into the server while it ran is worth more than what it was started with
        version = self._version_of(address)
        name = policy_name(policy)
        if not version.startswith(NAME):
            for own, root in cards:
                if own == name or _is_at(str(root or own), policy):
                    return own
        if cards and (version == name or (self._load_policies and self._load(address, policy))):
            return cards[0][0]
        found = version if version.startswith(NAME) else ", ".join(own for own, _ in cards)
        raise ServerError(
            f"{address} serves {found}, and {policy.path} ({name}) was asked for. Start it on that policy, "
            f"`vllm serve {policy.path.absolute()} --served-model-name {name}`, and go on with "
            "--only-missing-outputs; or set load_policies: true, where the server allows it."
        )

    def _version_of(self, address: str) -> str:
        """Return which policy was loaded into a running server; empty if none was, or it can't tell."""
        try:
            answer = self._ask_server("GET", f"{_root(address)}/weight_info")
        except RefusalError:  # it knows no such question
            return ""
        return str(answer.get("weight_version") or "")

    def _load(self, address: str, policy: PolicyCheckpoint) -> bool:
        """Put a policy's weights into a running server, and have it show that it holds them."""
        root, path = _root(address), policy.path.absolute()

        def call(method: str, **arguments: str) -> list[Any]:
            body = {"method": method, "kwargs": arguments}
            results = self._ask_server("POST", f"{root}/collective_rpc", body)["results"]
            return list(results)

        def say(version: str) -> None:
            self._ask_server("POST", f"{root}/update_weight_version", {"new_version": version})

        try:
            say(UNKNOWN)  # from here on it is what it was started with no more, wherever this ends
            call("reload_weights", weights_path=str(path))
        except ServerError as error:
            raise ServerError(f"{error} {address} can't load {path}: {LOADING}.") from error
        if not self._ask_server("POST", f"{root}/reset_prefix_cache").get("success"):
            raise ServerError(f"{address} is at work for others: its prefix cache can't be reset")
        held = call("digest_weights")
        if len(held) != 1 or differing_weights(path, {k: tuple(v) for k, v in held[0].items()}):
            raise ServerError(f"{address} can't show that it holds {path}: start it on that policy")
        say(policy_name(policy))
        logger.info("%s holds %s now", address, path)
        return True

    # ---- writing -------------------------------------------------------------------------------

    def _work(
        self,
        address: str,
        models: Mapping[str, str],
        asks: Sequence[Ask],
        todo: queue.SimpleQueue[int],
        done: queue.SimpleQueue[tuple[int, list[Written] | Exception]],
        stop: threading.Event,
    ) -> None:
        """Have one server write one text after the other, until there is none left."""
        while not stop.is_set():
            try:
                i = todo.get_nowait()
            except queue.Empty:
                return
            try:
                done.put((i, self._write_one(address, models, asks[i])))
            except Exception as error:
                done.put((i, error))

    def _write_one(self, address: str, models: Mapping[str, str], ask: Ask) -> list[Written]:
        try:
            return self._complete(address, models[address], ask)
        except RefusalError:
            raise
        except ServerError as error:
            others = list(models)
            other = others[(others.index(address) + 1) % len(others)]
            logger.warning("%s Tried once more, on %s", error, other)
            try:
                return self._complete(other, models[other], ask)
            except ServerError as second:
                raise ServerError(
                    f"a request failed twice: {error} Then: {second} Is the server up, and quick enough "
                    f"for timeout_seconds={self._timeout[1]:g}? --only-missing-outputs goes on from the "
                    "last shard that was kept."
                ) from second

    def _complete(self, address: str, model: str, ask: Ask) -> list[Written]:
        # all samples are the same where nothing is drawn, and vLLM refuses more than one
        greedy = ask.sampling["temperature"] == 0
        body = {
            "model": model,
            "prompt": list(ask.tokens),
            "n": 1 if greedy else len(ask.seeds),
            "seed": ask.seeds[0] % 2**31,
            "return_token_ids": True,
            **NEUTRAL,
            **ask.sampling,
        }
        wanted = ask.sampling.get("logprob_token_ids", ())
        if wanted:
            body |= {"logprobs": len(wanted), "return_tokens_as_token_ids": True}
        answer = self._ask_server("POST", f"{address}/completions", body)
        try:
            choices = sorted(answer["choices"], key=lambda choice: int(choice["index"]))
            written = [_read(choice, wanted) for choice in choices]
        except (KeyError, TypeError, ValueError, ArithmeticError) as error:
            raise ServerError(f"{address} answered what can't be read: {error!r}.") from error
        if len(written) != body["n"]:
            raise ServerError(
                f"{address} wrote {len(written)} samples where {body['n']} were asked for."
            )
        return written * len(ask.seeds) if greedy else written

    def _ask_server(self, method: str, url: str, body: Any = None) -> dict[str, Any]:
        """Return what a server answers; raise ``ServerError`` naming it for anything but JSON."""
        try:
            response = self._send(method, url, body)
            if not response.ok:
                words = " ".join(response.text.split())[:300]
                refused = 400 <= response.status_code < 500 and response.status_code != BUSY
                kind = RefusalError if refused else ServerError
                raise kind(f"{url} answered {response.status_code}: {words}.")
            answer = response.json() if response.content else {}
        except requests.RequestException as error:
            raise ServerError(f"{url} didn't answer ({type(error).__name__}).") from error
        if not isinstance(answer, dict):
            raise ServerError(
                f"{url} answered {str(answer)[:300]!r}, where an object was expected."
            )
        return answer

    def _send(self, method: str, url: str, body: Any) -> requests.Response:
        """Return a server's answer; one that is busy and says until when is asked again then."""
        ends = time.monotonic() + self._timeout[1]
        while True:
            response = requests.request(
                method, url, json=body, headers=self._headers, timeout=self._timeout
            )
            wait = retry_after(response)
            if wait is None:
                return response
            left = ends - time.monotonic()
            if wait > left:
                raise ServerError(
                    f"{url} answered {response.status_code} and asks to wait for {wait:.0f} s, and "
                    f"{max(left, 0):.0f} s are left of timeout_seconds={self._timeout[1]:g}: raise it, or ask "
                    "fewer prompts at once (requests_per_server)."
                )
            logger.info("%s is busy: asked again in %.0f s, as it says", url, wait)
            time.sleep(max(wait, SHORTEST_WAIT))


class ServersGenerator(EngineGenerator):
    """Draws samples from running OpenAI-compatible servers, through their completions."""

    def __init__(self, servers: Sequence[str], **options: Any) -> None:
        """Name the servers; the options are those of :class:`Servers`."""
        super().__init__(Servers(servers, **options))


class ServersLevelScorer(EngineLevelScorer):
    """The judge's language model on running vLLM servers: ``scorer`` of a ``RubricJudge``.

    Others don't report log-probabilities of given tokens.
    """

    def __init__(self, model: str, servers: Sequence[str], **options: Any) -> None:
        """Name the judge, a hub id or a directory as the servers were started with, and the servers."""
        super().__init__(Servers(servers, **options), lambda: PolicyCheckpoint(Path(model)))


def policy_name(policy: PolicyCheckpoint) -> str:
    """Name a policy by its content, as a server should call it; a hub id stays as it is."""
    if not policy.path.is_dir():
        return str(policy.path)
    return NAME + hashlib.sha256(policy_fingerprint(policy).encode()).hexdigest()[:12]


def retry_after(response: requests.Response) -> float | None:
    """Return the seconds that a busy server asks to wait for (RFC 9110, 10.2.3); none if it asks for nothing."""
    value = response.headers.get("Retry-After", "").strip()
    if response.status_code not in MAY_ASK_TO_WAIT or not value:
        return None
    if value.isascii() and value.isdecimal():
        return float(value)
    try:
        until = parsedate_to_datetime(value)
    except ValueError:
        return None
    if until.tzinfo is None:  # -0000: a date in UTC
        until = until.replace(tzinfo=UTC)
    return max((until - datetime.now(UTC)).total_seconds(), 0.0)


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields[name]
    if not isinstance(value, str):
        raise ValueError(f"{name} is {value!r:.80}, where a text was expected")
    return value


def _is_at(root: str, policy: PolicyCheckpoint) -> bool:
    """Say whether what a server was started with is the policy: the same hub id, or the same files."""
    if not policy.path.is_dir() or not Path(root).is_dir():
        return root == str(policy.path)
    return policy_fingerprint(PolicyCheckpoint(Path(root))) == policy_fingerprint(policy)


def _root(address: str) -> str:
    return address.removesuffix("/v1")


def _read(choice: Mapping[str, Any], wanted: Sequence[int]) -> Written:
    """Read one sample of an answer."""
    reason = choice["finish_reason"]
    if reason not in ("stop", "length"):
        raise ValueError(f"finish_reason={reason!r}")
    tokens = choice.get("token_ids")
    # a server that shows tokens may leave the text out, but a text is a text
    text = _text(choice, "text") if tokens is None or "text" in choice else ""
    written = Written(
        tokens=[int(token) for token in tokens or ()],
        # halves of characters, which JSON can hold and no file of ours
        text=text.encode("utf-8", "replace").decode() if tokens is None else None,
        ended=reason == "stop",
    )
    if wanted:
        (own,) = choice["logprobs"]["top_logprobs"]
        written.log_probabilities = {token: float(own[f"token_id:{token}"]) for token in wanted}
    return written
