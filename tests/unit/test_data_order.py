"""The data order: complete, the same on any number of ranks, and resumable anywhere."""

from itertools import pairwise

import pytest

from training.data.order import SampleOrder, SampleRef
from training.errors import DataError

SIZES = (5, 1, 8, 3)
EPOCH = sum(SIZES)


@pytest.fixture
def order() -> SampleOrder:
    return SampleOrder(block_sizes=SIZES, seed=17)


@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_an_epoch_reads_every_sample_once(order: SampleOrder, epoch: int) -> None:
    seen = [order.at(epoch * EPOCH + offset) for offset in range(EPOCH)]

    assert sorted((ref.block, ref.row) for ref in seen) == [
        (block, row) for block, size in enumerate(SIZES) for row in range(size)
    ]
    assert {ref.epoch for ref in seen} == {epoch}


def test_a_block_is_read_to_its_end_before_the_next_is_opened(order: SampleOrder) -> None:
    blocks = [order.at(position).block for position in range(EPOCH)]

    assert sum(a != b for a, b in pairwise(blocks)) == len(SIZES) - 1


def test_epochs_and_seeds_differ(order: SampleOrder) -> None:
    other = SampleOrder(block_sizes=SIZES, seed=18)
    first, second = ([order.at(e * EPOCH + i) for i in range(EPOCH)] for e in (0, 1))

    assert [(r.block, r.row) for r in first] != [(r.block, r.row) for r in second]
    assert first != [other.at(position) for position in range(EPOCH)]


def test_a_position_far_into_the_run_is_found_as_if_it_were_the_first(order: SampleOrder) -> None:
    far = 10**12
    fresh = SampleOrder(block_sizes=SIZES, seed=17)

    assert fresh.at(far) == order.at(far)


def test_the_order_is_pinned(order: SampleOrder) -> None:
    # A change here breaks the resumption of every run that was started before it.
    assert [order.at(position) for position in (0, 1, EPOCH)] == [
        SampleRef(epoch=0, block=3, row=1),
        SampleRef(epoch=0, block=3, row=0),
        SampleRef(epoch=1, block=3, row=0),
    ]


@pytest.mark.parametrize("sizes", [(), (3, 0)])
def test_an_empty_block_is_refused(sizes: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="every block needs a sample"):
        SampleOrder(block_sizes=sizes, seed=0)
