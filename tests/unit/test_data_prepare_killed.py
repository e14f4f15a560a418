"""Preparing that is killed again and again ends with the bytes of one that was not."""

import json
import subprocess
import sys
from pathlib import Path

from tests.corpus_case import bytes_of, configure, write_notes
from training.data.reading.reader import open_corpus

ROOT = Path(__file__).resolve().parents[2]
KILLS = 20
SEED = 1


def test_twenty_kills_at_random_moments_give_the_same_bytes(tmp_path: Path) -> None:
    for number in range(3):
        write_notes(tmp_path / "in" / f"{number}.jsonl", 60, first=200 * number)
    data = configure(tmp_path)

    ended = subprocess.run(
        [sys.executable, "-m", "tests.killed_prepare"],
        input=json.dumps({"data": data.model_dump(mode="json"), "kills": KILLS, "seed": SEED}),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert ended.returncode == 0, ended.stderr
    said = json.loads(ended.stdout)
    assert said["undisturbed"]
    assert said["finished"]
    assert said["killed"] >= KILLS // 2  # the rest came when all was done
    assert bytes_of(tmp_path / "corpus") == bytes_of(tmp_path / "corpus.undisturbed")
    for split in ("train", "held_out"):
        open_corpus(data.path, split).verify()
    held = {path.name for path in (tmp_path / "corpus" / "parts").iterdir()}
    assert held == {path.name for path in (tmp_path / "corpus.undisturbed" / "parts").iterdir()}
