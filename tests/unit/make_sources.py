"""Sources as a user's configuration makes them: the defaults of configs/source, and what a test changes."""

import json
from pathlib import Path
from typing import Any

import yaml

from training.config.sources import FilesSource, HubSource

CONFIGS = Path(__file__).parents[2] / "configs" / "source"

CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}


def files(*paths: Path | str, **other: Any) -> FilesSource:
    values = yaml.safe_load((CONFIGS / "files.yaml").read_text(encoding="utf-8"))
    return FilesSource.model_validate({**values, "paths": [str(path) for path in paths], **other})


def hub(dataset: Path | str, **other: Any) -> HubSource:
    values = yaml.safe_load((CONFIGS / "hub.yaml").read_text(encoding="utf-8"))
    return HubSource.model_validate({**values, "dataset": str(dataset), **other})


def write_lines(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path
