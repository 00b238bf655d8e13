"""The report as one HTML file that needs nothing else, and as a fragment for notebooks."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from throughtime.report import formulas
from throughtime.report.charts.training import training
from throughtime.report.files import write_whole
from throughtime.report.firstscreen import (
    WIDTHS,
    both_widths,
    dots,
    judged,
    main_layer,
    needed_of,
    others,
    picture,
    stable,
    story,
)
from throughtime.report.page import facts, sections
from throughtime.report.palette import variables
from throughtime.report.sentences import linked, marked, spoken

if TYPE_CHECKING:
    from throughtime.diagnosis.report import Report

HERE = Path(__file__).parent
PLOTLY = HERE / "vendor" / "plotly-cartesian.min.js.gz"
NOTEBOOK_WIDTH = 640


def render(report: Report) -> str:
    """The whole page. Names come from users' models: every one of them is escaped, and no script but ours may run."""
    parts = sections(report)
    trained = training(report.verification) if report.verification is not None else None
    charts = {f"{part.anchor}-{chart.key}": chart.views for part in parts for chart in part.charts}
    if trained is not None:
        charts["after-training"] = trained.views
    layer = main_layer(report)
    script = Markup((HERE / "templates" / "report.js").read_text(encoding="utf-8"))
    plotly = PLOTLY.read_bytes()
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            layer=layer,
            needed=needed_of(report, layer.name),
            facts=facts(layer),
            story=story(report),
            others=others(report),
            picture=both_widths({name: picture(report, layer, width) for name, width in WIDTHS.items()}),
            dots=dots(report),
            judged=judged(report),
            stable=stable(report),
            notes=[finding for finding in report.findings if finding.preview],
            sections=parts,
            training=trained,
            colours=Markup(variables(":root", keep_light=".tt-light")),
            style=Markup((HERE / "templates" / "report.css").read_text(encoding="utf-8")),
            script=script,
            trusted=f"'{_hash(script.encode())}' '{_hash(_plotly_script())}'",
            plotly=_base64(plotly),
            charts=_base64(gzip.compress(_json(charts).encode(), 9, mtime=0)),
        )
    )


def save_html(report: Report, path: str | Path) -> Path:
    """Write the page to `path`: whole, or not at all.

    Raises:
        InputError: the path cannot be written. Nothing is left behind, and a file that was there stays as it was.
    """
    return write_whole(path, render(report))


def notebook_html(report: Report) -> str:
    """The story, the main picture and the findings for a notebook cell: no script, and styles that stay inside."""
    layer = main_layer(report)
    return (
        _environment()
        .get_template("notebook.html.j2")
        .render(
            title=report.title,
            facts=facts(layer),
            story=story(report),
            picture=picture(report, layer, NOTEBOOK_WIDTH),
            judged=judged(report),
            findings=report.findings,
            colours=Markup(variables(".tt-nb")),
        )
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"marked": marked, "linked": linked, "spoken": spoken, "number": _number}
    environment.globals["formulas"] = formulas
    return environment


def _number(value: float) -> str:
    from throughtime.report.notation import number

    return number(value)


@cache
def _plotly_script() -> bytes:
    return gzip.decompress(PLOTLY.read_bytes())


def _hash(script: bytes) -> str:
    """The name by which the page's security policy lets a script run."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script).digest()).decode()}"


def _base64(data: bytes) -> Markup:
    return Markup(base64.b64encode(data).decode())


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
