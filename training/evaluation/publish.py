"""Writes the report folder, complete or not at all."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from training.errors import StorageError
from training.evaluation.draw import draw_png
from training.evaluation.page import build_page
from training.evaluation.report import Report
from training.files import sync_file, sync_folder


def publish_report(report: Report, folder: Path) -> None:
    """Write report.json, report.html and report.png.

    Raises:
        StorageError: The disk is full or refuses; the former report stays as it was.
    """
    contents = {
        "report.json": report.as_json().encode(),
        "report.html": build_page(report).encode(),
        "report.png": draw_png(report),
    }
    publish_files(contents, folder)


def publish_files(contents: Mapping[str, bytes], folder: Path) -> None:
    """Fill a folder beside ``folder`` and put it in its place once it is on the disk.

    Raises:
        StorageError: The disk is full or refuses; the former folder stays as it was.
    """
    staging = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
        for name, content in contents.items():
            (staging / name).write_bytes(content)
            sync_file(staging / name)
        sync_folder(staging)
        _put_in_place(staging, folder)
    except OSError as error:
        shutil.rmtree(staging, ignore_errors=True)
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise StorageError(f"{folder}: the report cannot be written ({reason}); free some space") from error


def _put_in_place(staging: Path, folder: Path) -> None:
    former = folder.with_name(f".{folder.name}.former")
    shutil.rmtree(former, ignore_errors=True)
    if folder.exists():
        folder.rename(former)
    staging.rename(folder)
    sync_folder(folder.parent)
    shutil.rmtree(former, ignore_errors=True)
