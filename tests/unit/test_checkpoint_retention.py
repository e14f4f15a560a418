"""Which checkpoints stay."""

import math
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tests.checkpoint_case import at
from tests.fake_run import FakeEngine, open_fake_store
from training.checkpoint.manifest import list_checkpoints, read_manifest
from training.checkpoint.retention import Retention, choose_surplus
from training.layout import RunLayout

SCORES = st.dictionaries(
    st.integers(1, 60), st.none() | st.floats(0, 9) | st.just(float("nan")), min_size=1, max_size=20
)


@given(SCORES, st.integers(1, 5), st.none() | st.integers(1, 20))
def test_the_newest_the_best_and_every_so_many_th_stay_and_all_else_goes(
    scores: dict[int, float | None], newest: int, every: int | None
) -> None:
    surplus = set(choose_surplus(scores, Retention(newest=newest, every_steps=every)))
    measured = {step: score for step, score in scores.items() if score is not None and not math.isnan(score)}
    best = {max(step for step in measured if measured[step] == min(measured.values()))} if measured else set()
    multiples = {step for step in scores if every is not None and step % every == 0}
    assert surplus == set(scores) - set(sorted(scores)[-newest:]) - best - multiples


def test_a_save_keeps_what_the_settings_say_and_the_best_by_evaluation(tmp_path: Path) -> None:
    store = open_fake_store(tmp_path, FakeEngine(), keep=Retention(newest=1, every_steps=4))
    scores = {1: 3.0, 2: 1.0, 3: 2.0, 4: None, 5: 2.5, 6: None}
    for step, score in scores.items():
        store.save(at(step), score=score)
    store.save(at(7), final=True)

    kept = [read_manifest(folder) for folder in list_checkpoints(RunLayout(tmp_path).checkpoints)]
    assert [(manifest.step, manifest.score) for manifest in kept] == [(2, 1.0), (4, None), (7, None)]


def test_only_one_save_is_on_its_way_and_each_is_told(tmp_path: Path) -> None:
    store = open_fake_store(tmp_path, FakeEngine(), keep=Retention(newest=9, every_steps=None))
    for step in range(1, 6):
        store.save(at(step))
    store.save(at(6), final=True)
    assert len(list_checkpoints(RunLayout(tmp_path).checkpoints)) == 6
