"""The policy's output format: lead-in, reasoning path, bridge, response (figs. 6 and 7).

One place writes it and one place reads it, so that what is trained is what is parsed.
"""

from __future__ import annotations

from rest_pg.backends.protocols import Generation
from rest_pg.config import ResponseFormat
from rest_pg.records import Sample


def format_completion(reasoning_path: str, response: str, response_format: ResponseFormat) -> str:
    """Join the parts that a policy is trained to write after its prompt.

    Without reasoning the completion is the response alone.

    Raises:
        ValueError: a part holds the bridge, so that the completion couldn't be parsed again.
    """
    if not response_format.reasoning:
        return response.strip()
    parts = {"reasoning path": reasoning_path.strip(), "response": response.strip()}
    for name, part in parts.items():
        if response_format.bridge.strip() in part:
            raise ValueError(
                f"the {name} holds the bridge {response_format.bridge!r}, which separates it from "
                "the response: change response_format.bridge"
            )
    return f"{open_response(parts['reasoning path'], response_format)}{parts['response']}"


def open_response(reasoning_path: str, response_format: ResponseFormat) -> str:
    """Return what stands in front of a response: lead-in, reasoning path and bridge, a line each."""
    lead_in, bridge = response_format.lead_in.strip(), response_format.bridge.strip()
    return "".join(f"{line}\n" for line in (lead_in, reasoning_path.strip(), bridge) if line)


def fixed_parts(response_format: ResponseFormat) -> tuple[str, ...]:
    """Return the sentences that every completion has, in order."""
    if not response_format.reasoning:
        return ()
    parts = response_format.lead_in.strip(), response_format.bridge.strip()
    return tuple(part for part in parts if part)


def parse_generation(generation: Generation, response_format: ResponseFormat) -> Sample:
    """Split what the policy wrote into its parts, strictly.

    Where the lead-in or the bridge is missing, or a part is empty, the sample is malformed; the
    paper doesn't say what becomes of it: here it is kept, counted, and has reward 0. A second bridge
    is malformed too: such a sample has no one response, and could not be learnt as one.
    """
    text = generation.text.strip()
    reasoning_path, response, malformed = "", text, ""
    if response_format.reasoning:
        lead_in, bridge = response_format.lead_in.strip(), response_format.bridge.strip()
        before, found, after = text.removeprefix(lead_in).partition(bridge)
        reasoning_path, response = (before.strip(), after.strip()) if found else ("", "")
        if not text.startswith(lead_in):
            malformed = "no_lead_in"
        elif not found:
            malformed = "no_bridge"
        elif bridge in response:
            malformed = "repeated_bridge"
        elif not reasoning_path:
            malformed = "empty_reasoning_path"
    if not malformed and not response:
        malformed = "empty_response"
    return Sample(
        example_id=generation.example_id,
        sample_index=generation.sample_index,
        text=generation.text,
        reasoning_path=reasoning_path,
        response=response,
        malformed=malformed,  # type: ignore[arg-type]
        finished=generation.finished,
        n_tokens=generation.n_tokens,
    )
