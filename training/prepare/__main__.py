"""Entry of `python -m training.prepare FILE`: one frozen configuration in, model folder and corpus out."""

import sys

from training.entry import run_entry
from training.prepare.body import prepare

sys.exit(run_entry("prepare", prepare))
