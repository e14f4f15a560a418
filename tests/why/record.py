"""Provokes faults for real and keeps what they leave: ``python -m tests.why.record [CASE...]``.

The folder's name is the cause that `metier why` has to find; nobody writes these files by hand. Some need
root, some the test cluster; a fault that cannot be provoked leaves its case as it is.
"""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.why import commands, faults, mishaps, slurm_faults
from tests.why.work import BASE, TWO, Work, record

CASES = Path(__file__).parent / "cases"


def main() -> int:
    """Record the cases that were named, or all; say which could not be."""
    known: dict[str, Callable[[Work], None]] = {
        **{case.__name__: case for case in (*commands.CASES, *faults.CASES)},
        **mishaps.CASES,
        **slurm_faults.CASES,
    }
    names = sys.argv[1:] or list(known)
    prepare_once()
    failed = []
    for name in names:
        print(name, end=": ", flush=True)
        with tempfile.TemporaryDirectory(prefix="metier-why-") as place:
            work = make_work(Path(place))
            try:
                known[name](work)
                record(work, CASES / name)
            except Exception as error:
                failed.append(name)
                print(f"failed: {type(error).__name__}: {error}")
                continue
        print(sorted(str(path.relative_to(CASES / name)) for path in (CASES / name).rglob("*.*")))
    return len(failed)


def prepare_once() -> None:
    """Prepare the tiny model and its corpus, and train once, unless that was done before."""
    if not (BASE / "data").is_dir():
        BASE.mkdir(exist_ok=True)
        work = Work(BASE)
        words = work.command("prepare", "experiment=tiny_smoke")
        subprocess.run(words, cwd=BASE, env=work.environment(), check=True)
    if not (BASE / "runs").is_dir():
        work = Work(BASE)
        subprocess.run(work.command("train", *TWO), cwd=BASE, env=work.environment(), check=True)


def make_work(place: Path) -> Work:
    """Make a user's folder with the model and the corpus; others may look into it."""
    place.chmod(0o755)
    for name in ("models", "data"):
        shutil.copytree(BASE / name, place / name)
    return Work(place)


if __name__ == "__main__":
    sys.exit(main())
