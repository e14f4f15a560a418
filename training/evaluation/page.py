"""report.html: one file that opens anywhere, offline."""

import base64
from pathlib import Path

from training.evaluation.draw import DARK, LIGHT, draw_bars_svg, draw_curve_svg
from training.evaluation.report import Report
from training.evaluation.words import (
    DASH,
    say_change,
    say_change_interval,
    say_interval,
    say_value,
)
from training.metrics.rates import say_duration
from training.pages import open_templates

TEMPLATE = "report.html.j2"


def build_page(report: Report) -> str:
    """Fill the template; every text in it is escaped."""
    environment = open_templates(Path(__file__).parent)
    environment.globals.update(
        say_value=say_value,
        say_interval=say_interval,
        say_change=say_change,
        say_change_interval=say_change_interval,
        say_duration=say_duration,
        dash=DASH,
    )
    return environment.get_template(TEMPLATE).render(
        report=report,
        scores=report.scores,
        pictures={
            "curve": {
                "light": embed(draw_curve_svg(report, LIGHT)),
                "dark": embed(draw_curve_svg(report, DARK)),
            },
            "bars": {
                "light": embed(draw_bars_svg(report, LIGHT)),
                "dark": embed(draw_bars_svg(report, DARK)),
            },
        },
    )


def embed(svg: bytes) -> str:
    """Write a picture into an address of its own."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()
