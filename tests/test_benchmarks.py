"""The benchmarks run, and what they call the released form computes what the released code did."""

import pytest
import torch

from benchmarks import gpu, measure, training
from benchmarks.agreement import INPUTS, Check, load_losses, relative_difference, stored_maps
from benchmarks.steps import Form, Step, random_problem, released_labels, released_losses
from cag.networks import NetworkOutput
from cag.runtime.errors import UserError

CPU = torch.device("cpu")


def test_the_gpu_benchmark_runs_without_one_when_told_to(capsys):
    gpu.main.main(["--device", "cpu", "--small"], standalone_mode=False)
    lines = capsys.readouterr().out.splitlines()
    assert "these figures mean nothing" in lines[1]
    rows = {cells[1].strip(): cells for cells in (x.split("|") for x in lines) if len(cells) > 2}
    assert {"as released", *gpu.RUNGS} <= rows.keys()  # one that failed says so in its name
    assert {"nearest anchor, stored", "class sums of full float32"} <= rows.keys()
    assert {*measure.PRECISIONS, "host memory, copied", "the device's memory"} <= rows.keys()
    assert any(line.startswith("fastest, ") for line in lines)


def test_without_a_gpu_the_user_is_told(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no GPU here; `--device cpu --small`"):
        gpu.chosen_device("cuda")


def test_a_rung_that_fails_leaves_the_others(monkeypatch, capsys):
    def failing(self, problem, form):
        if form.fused and not form.cudnn_benchmark:
            raise RuntimeError("out of\nmemory")
        return 0.5, "-"

    monkeypatch.setattr(gpu.Bench, "_measure_step", failing)
    gpu.Bench(CPU, small=True).training()
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if line.startswith("| ")][2:]
    assert len(rows) == 1 + len(gpu.RUNGS)
    assert [r for r in rows if "fused" in r][0].startswith(
        "| + fused optimizer: RuntimeError: out of memory |"
    )


def test_a_check_fails_above_its_limit_and_on_nan():
    assert Check("", 0.0, None, 0).passed and Check("", 1e-6, 1e-5, 1e-5).passed
    assert not Check("", 1, None, 0).passed
    assert not Check("", 0.0, 2e-5, 1e-5).passed
    assert not Check("", float("nan"), None, 1e-5).passed


def test_the_released_form_gives_the_released_labels():
    golden = stored_maps()
    found = released_labels(
        golden["features"].float(), golden["logits"].float(), golden["anchors"], 2.5, 0.95
    )
    for labels, kind, tie in zip(found, ("cluster", "prob"), ("cluster", "prob"), strict=True):
        clear = golden[f"near_tie_{tie}"] == 0
        assert torch.equal(labels[clear], golden[f"{kind}_label"][clear].long())


def test_the_released_form_gives_the_released_losses_and_gradients():
    golden = load_losses("golden_losses")
    inputs = {name: golden[name].float().clone().requires_grad_() for name in INPUTS}
    losses = released_losses(
        NetworkOutput(inputs["source_features"], inputs["source_logits"]),
        golden["source_labels"],
        NetworkOutput(inputs["target_features"], inputs["target_logits"]),
        golden["cluster_label"],
        golden["prob_label"],
        golden["anchors"],
        distance_weight=0.7,
        min_pixels=10,
    )
    losses.total.backward()
    torch.testing.assert_close(torch.stack(losses).detach(), golden["losses"], rtol=1e-5, atol=0)
    for name, tensor in inputs.items():
        assert relative_difference(tensor.grad, golden[f"grad_{name}"]) < 1e-5


@pytest.fixture(scope="module")
def problem():
    return random_problem(gpu.preset(small=True), CPU)


def test_the_problem_keeps_every_part_of_the_step_busy(problem):
    (_, source_labels), (_, target_labels) = problem.batch
    assert len(source_labels.unique()) > 10
    for labels in target_labels.unbind(1):
        assert 0.3 < (labels != 255).float().mean() < 0.7
    assert problem.anchors.isfinite().all()


def test_all_forms_take_the_same_step(problem):
    # without dropout, and with one set of labels, only the way it is done differs
    for module in problem.teacher.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    forms = [
        Form("released"),
        Form("cached", cached_labels=True),
        Form("ours", cached_labels=True, vectorised=True, channels_last=True, fused=True),
    ]
    losses = [torch.stack([step(), step()]) for step in (Step(problem, form) for form in forms)]
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-3, atol=0)
    torch.testing.assert_close(losses[2], losses[0], rtol=1e-3, atol=0)


def test_the_cpu_benchmark_runs(capsys):
    training.benchmark(gpu.preset(small=True), count=1)
    found = capsys.readouterr().out
    assert all(name in found for name in ("as released", *training.RUNGS, "AdamW, fused"))


def test_the_median_is_taken_after_the_warm_up(monkeypatch):
    ticks = iter([0, 9, 0, 1, 0, 2, 0, 30])  # four calls that take 9, 1, 2 and 30
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(ticks))
    assert measure.seconds(lambda: None, CPU, count=3, warm_up=1) == 2


def test_tables_line_up():
    assert measure.table(["a", "number"], [["long name", "1"], ["b", "22"]]).splitlines() == [
        "| a         | number |",
        "| --------- | -----: |",
        "| long name |      1 |",
        "| b         |     22 |",
    ]
