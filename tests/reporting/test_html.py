import json
import re
from html.parser import HTMLParser
from pathlib import Path

import plotly.graph_objects as go
import pytest
from hostile_pages import ATTACKS, hostile, report, study

from rest_pg.reporting.html import (
    content_security_policy,
    inline_script,
    publish_exports,
    script_hash,
    show_labels_literally,
)


class Page(HTMLParser):
    """What a browser would find in a page: its scripts, its data, its elements and its policy."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.scripts: list[str] = []
        self.data: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.policy = ""
        self._kept: list[str] | None = None
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.tags.append(tag)
        self.attributes += found.items()
        if tag == "meta" and found.get("http-equiv") == "Content-Security-Policy":
            assert "script" not in self.tags
            self.policy = found["content"]
        if tag == "script":
            self._kept = self.data if found.get("type") == "application/json" else self.scripts
            self._kept.append("")

    def handle_endtag(self, tag: str) -> None:
        self._kept = None

    def handle_data(self, data: str) -> None:
        if self._kept is not None:
            self._kept[-1] += data


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {"report": report(tmp_path_factory.mktemp("page")), "study": study()}


@pytest.mark.parametrize("name", ["report", "study"])
def test_a_page_runs_its_own_scripts_and_nothing_else(pages: dict[str, str], name: str) -> None:
    page = Page(pages[name])
    policy = dict(part.split(" ", 1) for part in page.policy.split("; "))
    assert policy["default-src"] == policy["connect-src"] == "'none'"
    assert policy["base-uri"] == policy["form-action"] == "'none'"
    assert policy["img-src"] == "data:"
    assert policy["script-src"].split() == [f"'sha256-{script_hash(s)}'" for s in page.scripts]
    assert len(page.scripts) == 4
    assert not any(name.startswith("on") for name, _ in page.attributes)
    assert not {name for name, _ in page.attributes} & {"src", "href", "action", "srcdoc"}
    assert not {*page.tags} & {"img", "iframe", "svg", "link", "base", "form", "object", "a"}
    assert page.tags.count("script") == 4 + len(page.data)


@pytest.mark.parametrize("name", ["report", "study"])
def test_texts_reach_the_page_as_they_are(pages: dict[str, str], name: str) -> None:
    data = [json.loads(text) for text in Page(pages[name]).data]
    rows = data[0]["held_out"]["examples"]
    assert {row["user"] for row in rows} == {hostile(f"user-{i:02}") for i in range(12)}
    assert {row["reference"] for row in rows} == {hostile("reference")}
    assert {row["documents"][0]["id"] for row in rows} == {hostile("file.txt")}
    # plotly decodes what is escaped, and would follow a link in what isn't
    assert ATTACKS[6] not in json.dumps(data[1:]).replace('\\"', '"')


def test_a_script_neither_ends_nor_comments_out_its_element() -> None:
    script = 'a = "</script><!--<SCRIPT></SCRIPT >";\r\nb = /<!--/;'
    assert (
        inline_script(script)
        == 'a = "\\x3c/script>\\x3c!--<SCRIPT>\\x3c/SCRIPT >";\nb = /\\x3c!--/;'
    )


def test_a_hash_is_that_of_the_standard() -> None:
    # the example of the standard: Content Security Policy Level 2, section 7.17.2
    assert script_hash("alert('Hello, world.');") == "qznLcsROx4GACP2dm0UCKCzCG+HiZ1guq6ZZDob/Tng="
    assert content_security_policy(["a", "b"]).count("'sha256-") == 2


def test_a_modules_exports_are_found_by_other_scripts() -> None:
    assert publish_exports("var a=1;export{a as default,b};\n/* x */") == (
        "var a=1;globalThis.bundle={default:a,b:b};\n/* x */"
    )
    with pytest.raises(ValueError, match="has 0 lists of exports"):
        publish_exports("var a=1;")


def test_labels_of_a_figure_are_shown_literally() -> None:
    figure = go.Figure()
    figure.add_scatter(x=[1, 2], y=["<b>a</b> & b", "2"], name='<a href="x">y</a>')
    figure.add_bar(x=[1, 2], y=[3, 4])
    show_labels_literally(figure)
    assert figure.data[0].name == '&lt;a href="x"&gt;y&lt;/a&gt;'
    assert list(figure.data[0].y) == ["&lt;b&gt;a&lt;/b&gt; &amp; b", "2"]
    assert list(figure.data[1].x) == [1, 2]
    # a category named by a number is a category
    assert figure.layout.yaxis.type == "category"
    assert figure.layout.xaxis.type is None


def test_no_template_marks_a_users_value_as_safe() -> None:
    templates = Path(__file__).parents[2] / "src/rest_pg/pipelines/evaluation/templates"
    safe = {
        found.strip()
        for path in templates.glob("*.jinja")
        for found in re.findall(r"\{\{([^}]*)\|safe", path.read_text("utf-8"))
    }
    assert safe == {"datatables_css", "script.text", r'figure|replace("<", "\\u003c")'}
