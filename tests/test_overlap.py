"""Overlapped work: in order, bounded, errors in their place, no thread left running."""

import threading
from contextlib import closing

import pytest
import torch
from project import launched

from cag.runtime.overlap import (
    MOST_THREADS,
    ahead,
    cores,
    in_order,
    overlapped,
    threads,
    to_cpu,
)
from cag.runtime.progress import Progress


class Failure(Exception):
    """An error of an item."""


def numbers(count, taken, fail_at=None):
    """Yield 0, 1, ... and record each that is taken, and the closing."""
    try:
        for i in range(count):
            if i == fail_at:
                raise Failure(i)
            taken.append(i)
            yield i
    finally:
        taken.append("closed")


def plain(items, **functions):
    """`overlapped` with one output for each item."""
    compute = functions.pop("compute", lambda item: [item])
    return overlapped(items, compute, Progress(lambda count, note: None), **functions)


@pytest.fixture(autouse=True)
def no_thread_left():
    before = threading.active_count()
    yield
    assert threading.active_count() == before


STREAMS = {
    "ahead": lambda items: ahead(items, depth=2),
    "in_order": lambda items: in_order(lambda item: item, items, workers=2),
    "both": lambda items: in_order(lambda item: item, ahead(items), workers=2),
    "overlapped": plain,
    "finished": lambda items: plain(items, finish=lambda item: item),
}


@pytest.fixture(params=STREAMS.values(), ids=STREAMS)
def stream(request):
    return request.param


def test_everything_comes_in_order(stream):
    assert list(stream(numbers(50, []))) == list(range(50))
    assert list(stream(numbers(0, []))) == []


def test_an_error_comes_after_the_items_before_it(stream):
    got = []
    with pytest.raises(Failure):
        for item in stream(numbers(50, taken := [], fail_at=20)):
            got.append(item)
    assert taken[:20] == list(range(20)) and "closed" in taken
    if stream in (STREAMS["ahead"], plain):
        assert got == list(range(20))


def test_an_error_of_the_function_comes_in_its_items_place():
    def fail_at_7(item):
        if item == 7:
            raise Failure
        return item

    got = []
    with pytest.raises(Failure), closing(in_order(fail_at_7, range(50), 3)) as results:
        for result in results:
            got.append(result)
    assert got == list(range(7))


@pytest.mark.parametrize(
    ("stream", "most"),
    [
        (lambda items: ahead(items, depth=1), 1),
        (lambda items: ahead(items, depth=3), 3),
        (lambda items: in_order(lambda item: item, items, workers=1), 2),
        (lambda items: in_order(lambda item: item, items, workers=4), 8),
        (plain, 5),  # two read, one that is computed, one computed, and one on its way
    ],
)
def test_few_items_are_under_way(stream, most):
    with closing(stream(numbers(100, taken := []))) as items:
        for item in items:
            assert len(taken) <= item + 1 + most
            if item == 50:
                break


def test_closing_stops_it(stream):
    items = stream(numbers(10**9, taken := []))
    assert next(items) == 0
    items.close()
    assert len([item for item in taken if item != "closed"]) < 20
    if stream in (STREAMS["ahead"], plain):
        assert taken[-1] == "closed"


@pytest.mark.parametrize("failing", ["read", "compute", "finish"])
def test_the_first_error_comes_from_wherever_it_is(failing):
    def fail_at_7(step):
        def function(item):
            if step == failing and item == 7:
                raise Failure
            return item

        return function

    compute, got = fail_at_7("compute"), []
    items = numbers(50, taken := [], fail_at=7 if failing == "read" else None)
    with (
        pytest.raises(Failure),
        closing(
            plain(items, compute=lambda item: [compute(item)], finish=fail_at_7("finish"))
        ) as results,
    ):
        for result in results:
            got.append(result)
    assert got == list(range(len(got))) and len(got) <= 7
    assert failing != "finish" or len(got) == 7
    assert taken[-1] == "closed"


def test_an_item_may_have_several_outputs_or_none():
    outputs = plain(numbers(5, []), compute=lambda item: [item] * item, finish=lambda item: -item)
    assert list(outputs) == [-1, -2, -2, -3, -3, -3, *[-4] * 4]


def test_reading_computing_and_finishing_go_on_at_once():
    together = threading.Barrier(3, timeout=30)

    def items():
        yield "first"
        yield "second"
        together.wait()  # the third is read
        yield "third"

    def compute(item):
        if item == "second":
            together.wait()
        yield item

    def finish(item):
        if item == "first":
            together.wait()
        return item

    assert list(plain(items(), compute=compute, finish=finish)) == ["first", "second", "third"]


def test_the_next_item_is_made_while_one_is_used():
    made = threading.Event()

    def items():
        yield "first"
        made.set()
        yield "second"

    with closing(ahead(items(), depth=1)) as stream:
        assert next(stream) == "first"
        assert made.wait(timeout=30)  # nobody has asked for the second
        assert next(stream) == "second"


def test_writers_work_side_by_side():
    together = threading.Barrier(2, timeout=30)
    assert len(list(in_order(lambda _: together.wait(), range(8), workers=2))) == 8


def test_processes_of_a_machine_share_its_cores(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 12)
    for processes, expected in ((None, 12), (1, 12), (5, 2), (48, 1)):
        if processes:
            launched(monkeypatch, processes)
        assert threads() == cores() == expected
    launched(monkeypatch, 1)
    monkeypatch.setattr("os.cpu_count", lambda: 256)
    assert threads() == MOST_THREADS and cores() == 256


DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]


@pytest.mark.parametrize("device", DEVICES)
def test_copies_are_complete_when_they_have_arrived(device):
    value = torch.arange(10**6, device=device)
    arrived = to_cpu(value * 2, value.float(), torch.ones(3))
    double, same, ones = arrived()
    assert {tensor.device.type for tensor in (double, same, ones)} == {"cpu"}
    assert torch.equal(double, torch.arange(10**6) * 2)
    assert torch.equal(same.long(), torch.arange(10**6)) and ones.sum() == 3
