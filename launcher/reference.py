"""Writes docs/configuration.md from schema and YAML: ``python -m launcher.reference FILE [--check]``."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from launcher.compose import compose_values
from launcher.generated import write_or_check
from launcher.tree import GROUPS, ConfigTree
from training.config.schema import RunConfig

_HEAD = """\
# Configuration

<!-- Written by `python -m launcher.reference docs/configuration.md`; change schema or YAML instead. -->

A run is composed from `configs/config.yaml`, one file of each group, and an experiment on top. A group is
chosen with `GROUP=CHOICE`, a single setting is given with `GROUP.KEY=VALUE`:

    metier train experiment=medical_qlora_smol strategy=zero3 optimizer.learning_rate=5e-4

`metier train experiment=NAME --cfg job` prints what is composed. Paths are relative to the folder in which
`metier` is called. A folder of your own, `--config-dir DIR`, holds files of the same form, for instance
`DIR/experiment/mine.yaml`. `dry_run=true` prints what a run would do, and does nothing.
The column *default* is what `configs/` says when neither an experiment nor the command line says otherwise.
"""

Schema = Mapping[str, Any]

_WORDS = {
    "integer": "whole number",
    "number": "number",
    "boolean": "`true`, `false`",
    "string": "text",
    "object": "mapping",
    "null": "`null`",
}


def write_reference() -> str:
    """Give the whole document."""
    tree = ConfigTree(None)
    schema = RunConfig.model_json_schema()
    values = compose_values([], tree)
    parts = [_HEAD, _experiments(tree), _top_level(schema, values)]
    sections = [
        *(group for group in GROUPS if group != "experiment"),
        "batch",
        "loss",
        "loop",
        "prepare",
        "loader",
        "audit",
        "export",
    ]
    parts += [_section(name, schema, values, tree) for name in sections]
    parts.append(_sources(schema))
    return "\n".join(parts)


def _experiments(tree: ConfigTree) -> str:
    return (
        f"## experiment\n\nA whole run. The file's name is the run's name.\n\n{_choices('experiment', tree)}"
    )


def _top_level(schema: Schema, values: Mapping[str, Any]) -> str:
    single = {
        name: field for name, field in schema["properties"].items() if not isinstance(values[name], Mapping)
    }
    text = f"## The run\n\n{_table(_rows('', single, values, schema))}"
    meaning = "say what a run would do, or what it would refuse, and do nothing"
    text += f"| `dry_run` | `true`, `false` | `false` | {meaning} |\n"
    meaning = "under Slurm: begin when this job (its number) or the newest job of this run has ended well"
    return text + f"| `after` | text or `null` | `null` | {meaning} |\n"


def _section(name: str, schema: Schema, values: Mapping[str, Any], tree: ConfigTree) -> str:
    section = _follow(schema["properties"][name], schema)
    text = f"## {name}\n\n{section['description']}\n"
    choices = tree.choices(name)
    if choices:
        text += f"\n{_choices(name, tree)}"
    return f"{text}\n{_table(_rows(f'{name}.', section['properties'], values[name], schema))}"


def _sources(schema: Schema) -> str:
    text = "## Sources\n\nWhat `data.sources.NAME` and `evaluation.general` may be, told apart by `kind`.\n"
    mapping = schema["$defs"]["DataConfig"]["properties"]["sources"]["additionalProperties"]["discriminator"][
        "mapping"
    ]
    for kind, reference in mapping.items():
        source = _follow({"$ref": reference}, schema)
        fields = {name: field for name, field in source["properties"].items() if name != "kind"}
        rows = [(f"`{name}`", _type(field, schema), _meaning(field)) for name, field in fields.items()]
        text += f"\n### kind: {kind}\n\n{source['description']}\n\n"
        text += _markdown(("key", "type", "meaning"), rows)
    return text


def _choices(group: str, tree: ConfigTree) -> str:
    rows = [(f"`{group}={choice}`", tree.summary(group, choice)) for choice in tree.choices(group)]
    return _markdown(("choice", "what it is"), rows)


def _rows(
    before: str, fields: Mapping[str, Schema], values: Mapping[str, Any], schema: Schema
) -> Iterator[tuple[str, ...]]:
    for name, field in fields.items():
        inner = _follow(field, schema).get("properties") if "$ref" in field else None
        if inner:
            yield from _rows(f"{before}{name}.", inner, values[name], schema)
        else:
            yield f"`{before}{name}`", _type(field, schema), _default(values[name]), _meaning(field)


def _table(rows: Iterator[tuple[str, ...]]) -> str:
    return _markdown(("key", "type", "default", "meaning"), list(rows))


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def _meaning(field: Schema) -> str:
    return str(field.get("description", ""))


def _default(value: Any) -> str:
    match value:
        case "???":
            return "must be given"
        case Mapping():
            return "the choice's" if value else "`{}`"
        case None | bool():
            return f"`{str(value).lower().replace('none', 'null')}`"
        case list():
            return f"`[{', '.join(str(each) for each in value)}]`"
        case float():
            return f"`{value:g}`"
    return f"`{value}`"


def _type(field: Schema, schema: Schema) -> str:
    """Say a JSON Schema type in words."""
    if "$ref" in field:
        return _type(_follow(field, schema), schema)
    if "oneOf" in field:
        return "a source, see below"
    if "anyOf" in field:
        return " or ".join(_type(each, schema) for each in field["anyOf"])
    choices = field.get("enum", [field["const"]] if "const" in field else [])
    if choices:
        return ", ".join(f"`{each}`" for each in choices)
    kind = str(field.get("type"))
    if kind == "array":
        return f"list of {_type(field['items'], schema)}"
    return _WORDS[kind] + (_bounds(field) if kind in {"integer", "number"} else "")


def _bounds(field: Schema) -> str:
    low, high = field.get("minimum"), field.get("maximum")
    if low is not None and high is not None:
        return f", {low:g} to {high:g}"
    above, below = field.get("exclusiveMinimum"), field.get("exclusiveMaximum")
    if above is not None and below is not None:
        return f" between {above:g} and {below:g}"
    if above is not None:
        return f" > {above:g}"
    return f" >= {low:g}" if low is not None else ""


def _follow(field: Schema, schema: Schema) -> Schema:
    reference = field.get("$ref")
    if reference is None:
        return field
    found: Schema = schema["$defs"][str(reference).rpartition("/")[2]]
    return found


if __name__ == "__main__":
    sys.exit(write_or_check("launcher.reference", write_reference))
