"""Pages that are one HTML file each. A Content-Security-Policy allows their own scripts and nothing else."""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode
from collections.abc import Iterable
from html import escape
from importlib.resources import files
from typing import Any, NamedTuple

import plotly.graph_objects as go
from jinja2 import PackageLoader, StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from plotly.offline import get_plotlyjs

from rest_pg.statistics import state_mean

TEMPLATES = ("rest_pg.pipelines.evaluation", "templates")
DIRECTIVES = (
    "default-src 'none'",
    "style-src 'unsafe-inline'",  # plots and tables set styles while they are drawn
    "img-src data:",
    "connect-src 'none'",
    "base-uri 'none'",
    "form-action 'none'",
)
"""A page's policy without its scripts: nothing is loaded, sent or submitted."""


class Script(NamedTuple):
    """A script of a page."""

    text: str
    module: bool = True


def render(template: str, **values: Any) -> str:
    """Render a page from a template: all text is escaped, and a misspelt field raises.

    Args:
        template: its file name.
        **values: its fields.

    Returns:
        HTML whose policy names each script by its hash.
    """
    environment = ImmutableSandboxedEnvironment(
        loader=PackageLoader(*TEMPLATES), autoescape=True, undefined=StrictUndefined
    )
    scripts = page_scripts()
    return environment.get_template(template).render(
        scripts=scripts,
        state_mean=state_mean,
        policy=content_security_policy(script.text for script in scripts),
        datatables_css=_bundled("dt_bundle.css"),
        **values,
    )


def page_scripts() -> list[Script]:
    """Return a page's scripts, in the order in which they run."""
    own = files(TEMPLATES[0]).joinpath(TEMPLATES[1])
    scripts = [
        Script(get_plotlyjs(), module=False),
        Script(publish_exports(_bundled("dt_bundle.js"))),
        *(Script(own.joinpath(f"{name}.js").read_text("utf-8")) for name in ("reading", "plots")),
    ]
    return [script._replace(text=inline_script(script.text)) for script in scripts]


def content_security_policy(scripts: Iterable[str]) -> str:
    """Return the policy of a page that runs these scripts and no other."""
    hashes = " ".join(f"'sha256-{script_hash(script)}'" for script in scripts)
    return "; ".join((*DIRECTIVES, f"script-src {hashes}"))


def script_hash(script: str) -> str:
    """Return a script's hash as a policy names it: SHA-256 in Base64."""
    return b64encode(hashlib.sha256(script.encode()).digest()).decode()


def inline_script(text: str) -> str:
    r"""Return a script that can stand within a page: its strings neither end nor comment out an element.

    ``\x3c`` means ``<`` in strings and regular expressions. Line ends are those of a parsed page, so that the
    hash holds.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return re.sub(r"<(?=!--|/script)", r"\\x3c", text, flags=re.IGNORECASE)


def publish_exports(module: str) -> str:
    """Have a module give what it exports to the page's other scripts, as ``bundle``.

    An inline module has no address to be imported from, and a ``blob:`` address would let any script run.

    Raises:
        ValueError: the module doesn't have exactly one list of exports.
    """
    found = re.findall(r"\bexport\s*\{([^{}]*)\}\s*;?", module)
    if len(found) != 1:
        raise ValueError(
            f"the bundle of itables has {len(found)} lists of exports, and one was expected: install the "
            "version that pyproject.toml names"
        )
    pairs = [part.split() for part in found[0].split(",") if part.strip()]
    fields = ",".join(f"{own[-1]}:{own[0]}" for own in pairs)
    return re.sub(
        r"\bexport\s*\{[^{}]*\}\s*;?", lambda _: f"globalThis.bundle={{{fields}}};", module
    )


def show_labels_literally(figure: go.Figure) -> None:
    """Escape the names in a figure: plotly reads HTML in them, links too. Named places are no numbers."""
    for trace in figure.data:
        if trace.name is not None:
            trace.name = escape(str(trace.name), quote=False)
        for axis in ("x", "y"):
            places = getattr(trace, axis, None)
            if places is None or not len(places) or not isinstance(places[0], str):
                continue
            trace[axis] = [escape(str(place), quote=False) for place in places]
            figure.update_layout({f"{axis}axis": {"type": "category"}})


def _bundled(name: str) -> str:
    return files("itables").joinpath("html", name).read_text(encoding="utf-8")
