"""Devices: what "auto" means, and how loader processes share a machine."""

import os

import pytest
import torch
from project import launched

from cag.runtime.devices import best_precision, loader_workers, make_fabric


@pytest.mark.parametrize(
    ("gpu", "bf16", "expected"),
    [(True, True, "bf16-mixed"), (True, False, "32-true"), (False, True, "32-true")],
)
def test_auto_is_bf16_where_a_gpu_has_it(monkeypatch, gpu, bf16, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    assert best_precision("auto") == expected
    assert best_precision("16-mixed") == "16-mixed"


def test_auto_makes_a_fabric():
    assert make_fabric("auto").device.type in ("cpu", "cuda", "mps")


@pytest.mark.parametrize(
    ("device", "cores", "processes", "expected"),
    [("cpu", 64, 1, 0), ("cuda", 64, 1, 8), ("cuda", 64, 16, 4), ("cuda", 4, 8, 1)],
)
def test_the_processes_of_a_machine_share_its_cores(
    monkeypatch, device, cores, processes, expected
):
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    launched(monkeypatch, processes)
    assert loader_workers(torch.device(device)) == expected
