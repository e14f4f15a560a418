"""scale.html: one file that opens anywhere, offline."""

import base64
from collections.abc import Sequence
from pathlib import Path

from launcher.scaling.collect import Table
from launcher.scaling.record import Experiment
from launcher.scaling.words import (
    NOTES,
    say_doubt,
    say_knee,
    say_mode,
    say_settings,
    say_trouble,
    speed_cells,
    speed_headings,
    step_cells,
    step_headings,
)
from training.pages import open_templates

_TEMPLATE = "scale.html.j2"


def build_page(experiment: Experiment, tables: Sequence[Table], picture: bytes | None) -> str:
    """Fill the template; every text in it is escaped.

    Args:
        experiment: What was measured.
        tables: The numbers.
        picture: A PNG; None where it could not be drawn.
    """
    environment = open_templates(Path(__file__).parent)
    return environment.get_template(_TEMPLATE).render(
        experiment=experiment,
        speed_columns=speed_headings(experiment),
        step_columns=step_headings(experiment),
        tables=[
            {
                "title": say_mode(table),
                "knee": say_knee(table, experiment),
                "doubt": say_doubt(table),
                "rows": [
                    {
                        "row": row,
                        "speed": speed_cells(row),
                        "step": step_cells(row),
                        "trouble": say_trouble(row),
                    }
                    for row in table.rows
                ],
            }
            for table in tables
        ],
        notes=NOTES,
        settings=say_settings(experiment),
        picture=base64.b64encode(picture).decode() if picture else None,
    )
