import pytest
from conftest import example
from jinja2 import UndefinedError

from rest_pg.backends.models import load_tokenizer
from rest_pg.backends.teachers import StatisticalTeacher, remove_quotations
from rest_pg.config import PromptParams, ResponseFormat
from rest_pg.pipelines.reasoning_path.nodes import create_prompts, write_reasoning_paths
from rest_pg.prompts import compile_template
from rest_pg.records import Profile, RetrievedDocument

PLAIN = ResponseFormat(reasoning=False)
TEMPLATE = "instruction: {{ instruction }} context: {{ context }} {{ 'r' if reasoning else '' }}"


def profile(*texts: str) -> Profile:
    documents = tuple(
        RetrievedDocument(document_id=str(i), text=text, similarity=0.5)
        for i, text in enumerate(texts)
    )
    return Profile(example_id="e1", documents=documents)


def prompt(policy, max_tokens: int, *texts: str, **fields):
    params = PromptParams(max_tokens=max_tokens, system="Be brief.")
    examples = [example(**fields)]
    prompts, figures = create_prompts(examples, [profile(*texts)], policy, TEMPLATE, PLAIN, params)
    return prompts[0], figures


def test_whole_sentences_fill_the_budget(policy) -> None:
    texts = ("First one. Second sentence that is long.", "Other one. And more of it here.")
    whole, _ = prompt(policy, 2000, *texts)
    assert " | ".join(texts) in whole.text
    cut, figures = prompt(policy, whole.n_tokens - 30, *texts)
    assert "First one. | Other one." in cut.text
    assert cut.n_words_cut == figures["words_cut"] == 10
    assert cut.n_tokens <= whole.n_tokens - 30
    tokenizer = load_tokenizer(policy)
    assert cut.n_tokens == len(tokenizer(cut.text, add_special_tokens=False).input_ids)


def test_a_prompt_that_cannot_fit_names_tokens_and_limit(policy) -> None:
    with pytest.raises(ValueError, match=r"prompt of example e1 takes \d+ tokens .*max_tokens=16"):
        prompt(policy, 16, "A text.")


def test_the_reference_never_reaches_a_prompt_and_user_text_is_no_template(policy) -> None:
    made, _ = prompt(policy, 500, "{{ reference }} {% raw %}", reference="SECRET")
    assert "SECRET" not in made.text
    assert "{{ reference }} {% raw %}" in made.text
    assert "Be brief." in made.text


def test_a_misspelt_field_stops_the_run() -> None:
    with pytest.raises(UndefinedError, match="instrution"):
        compile_template("{{ instrution }}")(instruction="x")


def test_the_statistical_path_states_facts_and_quotes_nothing(policy) -> None:
    texts = ("We built a harbour. We built ships for trade.", "Our harbour needs trade and ships.")
    made = write_reasoning_paths(
        [example(reference="The trade of our harbour and of ships grows each year by trade.")],
        [profile(*texts)],
        StatisticalTeacher(n_often=2, n_likely=2),
        policy,
    )
    # asked for "harbour" already; trade: 2 uses in the reference, 2 in the documents
    assert made[0].text == (
        "1. short sentences of about 5 words\n2. speaks as we\n"
        "3. often used: built, harbour\n4. likely here: trade, ships"
    )
    assert made[0].copied_ngrams == 0


def test_quoted_lines_are_dropped() -> None:
    reference = "one two three four five six seven eight nine"
    text = f"- formal\n\n- says {reference}\n- brief"
    assert remove_quotations(text, reference) == "- formal\n- brief"
