"""The loop, with fakes for all it drives."""

import math
import time

import pytest

from tests.loop_case import CONFIG, NAN, START, Fake, changed
from training.early_stop import remember_held_out
from training.errors import NumericError, StorageError
from training.loop import StopReason, train
from training.progress import Memory, Progress


def test_every_step_is_logged_and_checkpoints_come_when_due_and_at_the_end() -> None:
    fake = Fake()

    reason, progress = train(fake.parts(), CONFIG, START)

    assert reason is StopReason.FINISHED
    assert (progress.step, progress.samples_seen) == (7, 56)
    assert [record.step for record in fake.logged] == [1, 2, 3, 4, 5, 6, 7]
    assert [saved.step for saved in fake.saved] == [3, 6, 7]
    assert fake.final == [False, False, True]
    assert fake.settled == 7, "what became of a save is asked for at every step"
    assert fake.rates == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert fake.told_memory == [1], "the memory is told once, after the first step"


def test_the_loss_of_each_source_is_logged_by_name_where_it_has_targets() -> None:
    fake = Fake(losses={1: 3.0})

    train(fake.parts(), CONFIG, START)

    assert fake.logged[0].loss_by_source == {"law": 1.0, "replay": 2.0}
    assert fake.logged[1].loss_by_source == {"law": 3.0, "replay": 6.0}


def test_what_a_step_spends_compiling_is_told_beside_its_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake(compiling={0: 60.0, 3: 5.0})
    monkeypatch.setattr(time, "perf_counter", lambda: fake.now)

    train(fake.parts(), CONFIG, START)

    assert [record.step_seconds for record in fake.logged] == [1.0] * 7
    assert [record.compile_seconds for record in fake.logged] == [60.0, 0, 0, 5.0, 0, 0, 0]


@pytest.mark.parametrize("interrupted_at", range(1, 7))
def test_an_interrupted_run_trains_what_an_uninterrupted_one_does(interrupted_at: int) -> None:
    first = Fake(stop_after=interrupted_at)

    reason, progress = train(first.parts(), CONFIG, START)
    second = Fake(start=progress.step)
    train(second.parts(), CONFIG, progress)

    assert reason is StopReason.STOPPED
    assert first.saved[-1] == progress
    assert first.trained + second.trained == list(range(7))
    assert first.rates + second.rates == [float(step) for step in range(7)]
    assert (second.saved[-1].step, second.saved[-1].samples_seen) == (7, 56)


def test_a_run_whose_last_save_fails_does_not_end_as_finished() -> None:
    fake = Fake(failing_saves={7})

    with pytest.raises(StorageError, match="no space"):
        train(fake.parts(), CONFIG, START)


@pytest.mark.parametrize("value", [NAN, float("inf")])
def test_a_step_whose_loss_is_no_number_is_not_applied_and_the_data_goes_on(value: float) -> None:
    fake = Fake(losses={2: value})

    train(fake.parts(), CONFIG, START)

    assert fake.trained == list(range(7))
    assert fake.applied == [0, 1, 3, 4, 5, 6]
    assert [record.skipped for record in fake.logged] == [None] * 2 + ["the loss is not finite"] + [None] * 4
    assert [record.skipped_steps for record in fake.logged] == [0, 0, 1, 1, 1, 1, 1]
    assert fake.events == ["step_skipped"]
    assert fake.facts[0]["step"] == 3
    assert fake.facts[0]["documents"] == ["document 2", "at 16"]


def test_too_many_of_them_in_a_row_stop_the_run_and_name_the_documents() -> None:
    fake = Fake(losses={3: NAN, 4: NAN, 5: NAN})

    with pytest.raises(
        NumericError, match=r"step 6: .* as in the 2 steps in a row before it; look at document 5, at 40"
    ):
        train(fake.parts(), CONFIG, START)
    assert [saved.step for saved in fake.saved] == [3]
    assert fake.events == ["step_skipped", "step_skipped", "step_refused"]


def test_a_spike_rolls_back_to_the_last_regular_checkpoint_and_goes_on_past_its_data() -> None:
    fake = Fake(losses={4: 9.0})

    reason, progress = train(fake.parts(), changed(spike="roll_back"), START)

    assert reason is StopReason.FINISHED
    # Batch 4 is step 5; the weights go back to those of step 3, the data goes on with batch 5.
    assert [record.step for record in fake.logged] == [1, 2, 3, 4, 5, 4, 5, 6, 7]
    assert fake.trained == list(range(9))
    assert fake.applied == [0, 1, 2, 3, 5, 6, 7, 8]
    assert (progress.step, progress.samples_seen) == (7, 72)
    assert fake.rates == [0, 1, 2, 3, 4, 3, 4, 5, 6]
    assert fake.events == ["rolled_back"]
    assert fake.facts[0]["to_step"] == 3
    assert [(moment.step, moment.samples_seen) for moment in fake.rewound] == [(3, 24)]
    assert progress.memory.skipped_steps == 1


def test_a_spike_before_the_first_checkpoint_is_skipped() -> None:
    fake = Fake(losses={2: 9.0})

    train(fake.parts(), changed(spike="roll_back"), START)

    assert fake.applied == [0, 1, 3, 4, 5, 6]
    assert fake.events == ["step_skipped"]


@pytest.mark.parametrize("interrupted_at", range(1, 9))
def test_a_run_that_rolls_back_ends_the_same_wherever_it_is_interrupted(interrupted_at: int) -> None:
    settings = changed(spike="roll_back", max_steps=8)
    losses = {position: 1.0 + position / 1000 for position in range(20)} | {4: 9.0, 7: NAN}
    whole = Fake(losses=losses)
    _, wanted = train(whole.parts(), settings, START)

    first = Fake(losses=losses, stop_after=interrupted_at)
    reason, progress = train(first.parts(), settings, START)
    second = Fake(losses=losses, start=progress.samples_seen // 8, saved=first.saved)
    _, found = train(second.parts(), settings, progress)

    assert reason is StopReason.STOPPED
    assert found == wanted
    told = {record.step: (record.loss, record.skipped_steps) for record in first.logged + second.logged}
    assert repr(told) == repr(
        {record.step: (record.loss, record.skipped_steps) for record in whole.logged}
    ), "NaN is not equal to itself, its name is"
    assert first.applied + second.applied == whole.applied


def test_the_held_out_loss_is_measured_when_due_and_at_the_end_and_handed_to_the_checkpoint() -> None:
    fake = Fake(held_out=[3.0, 2.0, 2.5, 1.5])

    train(fake.parts(), changed(evaluate_every_steps=2), START)

    assert [record.held_out_loss for record in fake.logged] == [None, 3.0, None, 2.0, None, 2.5, 1.5]
    assert fake.logged[1].held_out_loss_by_source == {"law": 3.0}
    assert [(saved.step, score) for saved, score in zip(fake.saved, fake.scores, strict=True)] == [
        (3, None), (6, 2.5), (7, 1.5),
    ]  # fmt: skip


def test_a_run_without_gains_stops_early_and_is_saved() -> None:
    fake = Fake(held_out=[3.0, 2.0, 1.95, 2.1])
    settings = changed(evaluate_every_steps=1, patience=2, min_change=0.1)

    reason, progress = train(fake.parts(), settings, START)

    assert reason is StopReason.FINISHED
    assert progress.step == 4
    assert fake.saved[-1] == progress
    assert fake.events == ["stopped_early"]
    # No gain, and the best all the same: its checkpoint is the one that is kept.
    assert fake.facts[0]["best_held_out_loss"] == 1.95
    again = Fake()
    assert train(again.parts(), settings, progress)[1] == progress
    assert again.trained == []


def test_small_steps_down_are_a_gain_together_and_no_number_is_none() -> None:
    memory, since = Memory(), []
    for loss in (math.nan, 2.0, 1.96, 1.92, 1.88, math.inf):
        memory = remember_held_out(memory, loss, changed(min_change=0.1))
        since.append(memory.evaluations_without_gain)
    assert since == [1, 0, 1, 2, 0, 1]
    assert (memory.best_held_out_loss, memory.gained_held_out_loss) == (1.88, 1.88)


@pytest.mark.parametrize("interrupted_at", range(1, 4))
def test_patience_survives_an_interruption(interrupted_at: int) -> None:
    held_out = [3.0, 2.0, 2.0, 2.0]
    settings = changed(evaluate_every_steps=1, patience=2)
    first = Fake(held_out=held_out, stop_after=interrupted_at)

    _, progress = train(first.parts(), settings, START)
    second = Fake(held_out=held_out, start=progress.step)
    _, progress = train(second.parts(), settings, progress)

    assert progress.step == 4


def test_a_finished_run_trains_no_further() -> None:
    fake = Fake(start=7)

    assert train(fake.parts(), CONFIG, Progress(step=7, samples_seen=56)) == (
        StopReason.FINISHED,
        Progress(step=7, samples_seen=56),
    )
    assert fake.trained == []


def test_every_update_waits_for_the_copy_of_a_save_and_the_wait_is_no_part_of_the_step() -> None:
    fake = Fake(slow_copy=0.05, losses={2: NAN})

    train(fake.parts(), CONFIG, START)

    assert fake.waited == [0, 1, 2, 3, 4, 5], "before each update, and for none that is not applied"
    for record in fake.logged:
        waited = 0.0 if record.skipped else 0.05
        assert record.checkpoint_stall_seconds >= waited
        assert record.step_seconds < 0.05
        assert record.collectives_seconds == 0.25
