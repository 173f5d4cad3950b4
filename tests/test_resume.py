"""A training of two processes, killed at random moments, ends with the usual bytes."""

import random

from benchmarks import resume
from benchmarks.resume import Training, kill_at_random, make_project, run_once

ITERATIONS = 20  # saved after 10 and 20
KILLS = 2


def test_two_processes_killed_at_random_moments_end_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(resume, "ENCODER", "tu-test_efficientnet")  # processes wait at each layer
    training = Training(make_project(tmp_path / "project", ITERATIONS), "adapt", processes=2)
    whole = run_once(training)
    expected = training.digests()
    assert not whole.killed and len(whole.steps) == ITERATIONS
    assert len(expected) == len(training.outputs) and not training.checkpoint.exists()
    training.delete_outputs()

    # Fails where anything that a run leaves under a final name has other bytes.
    tally = kill_at_random(training, whole, expected, KILLS, random.Random(1))
    assert tally["kills"] >= KILLS
    assert tally["that resumed"] > 0 and tally["that ended"] > 0
