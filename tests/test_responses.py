import pytest
from hypothesis import given
from hypothesis import strategies as st

from rest_pg.backends.protocols import Generation
from rest_pg.config import ResponseFormat
from rest_pg.responses import format_completion, parse_generation

REASONING = ResponseFormat(reasoning=True, lead_in="Style:", bridge="Answer:")
PLAIN = ResponseFormat(reasoning=False)
FILLED = st.text(min_size=1).map(str.strip).filter(lambda t: t and "Answer:" not in t)


def generation(text: str) -> Generation:
    return Generation(example_id="e", sample_index=0, text=text, finished=True, n_tokens=1)


@given(path=FILLED, response=FILLED)
def test_what_is_formatted_is_parsed_again(path: str, response: str) -> None:
    sample = parse_generation(generation(format_completion(path, response, REASONING)), REASONING)
    assert (sample.reasoning_path, sample.response, sample.malformed) == (path, response, "")


@pytest.mark.parametrize(
    ("text", "malformed"),
    [
        pytest.param("Style: calm Answer: yes", "", id="whole"),
        pytest.param("calm Answer: yes", "no_lead_in", id="no lead-in"),
        pytest.param("Style: calm", "no_bridge", id="no bridge"),
        pytest.param("Style: Answer: yes", "empty_reasoning_path", id="no path"),
        pytest.param("Style: calm Answer: ", "empty_response", id="no response"),
        pytest.param("Style: a Answer: b Answer: c", "repeated_bridge", id="two bridges"),
        pytest.param("", "no_lead_in", id="empty"),
    ],
)
def test_malformed_samples_are_named(text: str, malformed: str) -> None:
    assert parse_generation(generation(text), REASONING).malformed == malformed


def test_without_reasoning_the_text_is_the_response() -> None:
    assert parse_generation(generation(" yes "), PLAIN).response == "yes"
    assert parse_generation(generation("  "), PLAIN).malformed == "empty_response"


def test_a_bridge_inside_a_part_is_refused() -> None:
    with pytest.raises(ValueError, match="holds the bridge 'Answer:'"):
        format_completion("calm Answer:", "yes", REASONING)
