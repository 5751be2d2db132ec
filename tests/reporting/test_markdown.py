import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from markdown import markdown

from rest_pg.reporting.markdown import code_block, code_span, escape_markdown, yaml_scalar

HOSTILE = (
    "<img src=x onerror=run()>",
    "[link](https://evil.test)",
    "![i](https://evil.test)",
    "**bold** _it_ `code` ~~no~~ $x$",
    "# heading",
    "1. item",
    "- item",
    "+ item",
    "a | b",
    "rouge_1_f __init__ _a_b_",
    "---",
    "</td></table>",
    "&lt;b&gt;",
    "a\n\n# b",
    "back\\slash",
)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_text_is_shown_literally(text: str) -> None:
    from bs4 import BeautifulSoup

    page = BeautifulSoup(markdown(escape_markdown(text), extensions=["extra"]), "html.parser")
    assert [tag.name for tag in page.find_all(True)] == ["p"]
    # "|", "~" and "$" mean something in other dialects alone, which take the sign before them away
    shown = page.get_text().replace("\\|", "|").replace("\\~", "~").replace("\\$", "$")
    assert shown == " ".join(text.split())


def test_an_address_is_no_link() -> None:
    assert "://" not in escape_markdown("see https://evil.test")
    assert "www." not in escape_markdown("www.evil.test")


@pytest.mark.parametrize("text", ["a", "a`b", "``", "`", "a ``` b"])
def test_code_ends_where_it_should(text: str) -> None:
    assert markdown(code_span(text)).count("<code>") == 1
    fenced = code_block(f"x\n{text}\n<b>").splitlines()
    assert fenced[0] == fenced[-1]
    assert fenced[0] not in fenced[1:-1]
    assert fenced[0] not in text


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_a_yaml_string_is_read_back(text: str) -> None:
    card = f"name: {yaml_scalar(text)}\nnext: 1"
    assert "\n" not in yaml_scalar(text)
    assert yaml.safe_load(card) == {"name": text, "next": 1}
