"""Making items in one thread and using them in another: order, overlap, and every end."""

import threading

import pytest

from wan.handover import Abandoned, used_beside


def test_items_arrive_in_order_and_the_result_comes_back():
    assert used_beside(iter(range(50)), list) == list(range(50))
    assert used_beside(iter(()), sum) == 0


def test_one_item_is_made_while_another_is_used_and_no_more_than_that():
    made, third = [], threading.Event()

    def items():
        for number in range(8):
            made.append(number)
            if number == 2:
                third.set()
            yield number

    def use(given):
        next(given)
        assert third.wait(20), "while the first is used, the second waits and the third is made"
        most = [len(made) - used for used, _ in enumerate(given, start=2)]
        return max(most)

    assert used_beside(items(), use) <= 3


def test_an_error_of_the_user_ends_the_making():
    made = []

    def use(given):
        next(given)
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        used_beside((made.append(number) or number for number in range(10**9)), use)
    assert len(made) < 10**6


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_end_of_the_making_lets_the_user_clean_up_first(error):
    ends = []

    def items():
        yield 1
        raise error

    def use(given):
        try:
            list(given)
        except Abandoned:
            ends.append("cleaned up")
            raise

    with pytest.raises(error):
        used_beside(items(), use)
    assert ends == ["cleaned up"]
    assert not [thread for thread in threading.enumerate() if thread.name == "use what is made"]
