"""The benchmarks run, and their released form computes the released code's results."""

from types import SimpleNamespace

import pytest
import torch
from golden_files import INPUTS, LOSSES, golden_arrays, stored_maps
from test_gpu import distance

from benchmarks import gpu, kernels, measure, networks, training
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
    stores = "16 directions", "all channels"  # the small network has 16 channels
    places = *measure.PRECISIONS, gpu.COPIED, gpu.ON_DEVICE
    assert {f"{store}, {place}" for store in stores for place in places} <= rows.keys()
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


def test_agreement_is_what_the_tests_say(monkeypatch):
    bench = gpu.Bench(CPU, small=True)
    bench.on_gpu = True
    for status in (0, 1):
        result = SimpleNamespace(returncode=status)
        monkeypatch.setattr(gpu.subprocess, "run", lambda *_, result=result, **__: result)
        assert bench.agreement() is (status == 0)


def test_the_released_form_gives_the_released_labels():
    golden = stored_maps()
    found = released_labels(
        golden["features"].float(), golden["logits"].float(), golden["anchors"], 2.5, 0.95
    )
    for labels, kind, tie in zip(found, ("cluster", "prob"), ("cluster", "prob"), strict=True):
        clear = golden[f"near_tie_{tie}"] == 0
        assert torch.equal(labels[clear], golden[f"{kind}_label"][clear].long())


def test_the_released_form_gives_the_released_losses_and_gradients():
    golden = golden_arrays("golden_losses")
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
    for name, loss in zip(LOSSES, losses, strict=True):
        torch.testing.assert_close(loss.detach().double(), golden[name], rtol=1e-5, atol=0)
    for name, tensor in inputs.items():
        assert distance(tensor.grad, golden[f"grad_{name}"]) < 1e-5


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


def test_the_network_benchmark_says_what_works_and_why_not(monkeypatch):
    monkeypatch.setattr(networks, "ARCHITECTURES", ("FPN", "Linear"))
    encoders = {"small": ("tu-test_efficientnet", {}), "ViT": ("tu-test_vit", {})}
    monkeypatch.setattr(networks, "ENCODERS", encoders)
    heads, _, pyramid, linear, (reason,) = networks.rows()
    assert heads == ["", "small", "ViT"] and pyramid == ["`FPN`", "128, 4", "no (1)"]
    assert linear == ["`Linear`", "64, 32", "64, 16"] and reason.startswith("1. Unsupported model")
    large = "tu-test_efficientnet", {}, "FPN", (64, 96)
    monkeypatch.setattr(networks, "LARGE", [large])
    *_, row = networks.memory_rows()
    assert row[:4] == ["`FPN`", "`tu-test_efficientnet`", row[2], "64 x 96"]
    assert float(row[2]) > 0 and len(row) == 6


def clock(*calls):
    """A clock for calls of these durations, which is read before and after each."""
    ticks = iter([tick for duration in calls for tick in (0, duration)])
    return lambda: next(ticks)


def test_the_median_is_taken_after_the_warm_up():
    # two functions in turn, four calls of each
    times = clock(9, 90, 1, 10, 2, 20, 30, 300)
    functions = [lambda: None] * 2
    assert measure.alternating_seconds(functions, 3, 1, times) == [2, 20]


def test_the_mean_leaves_the_warm_up_out(monkeypatch):
    monkeypatch.setattr(measure.time, "perf_counter", clock(6))
    calls = []
    assert measure.seconds(lambda: calls.append(1), count=3, warm_up=2) == 2
    assert len(calls) == 5


def test_tables_line_up():
    rows = [{"a": "long name", "number": "1"}, {"a": "b", "number": "22"}]
    assert measure.table(rows).splitlines() == [
        "| a         | number |",
        "| --------- | -----: |",
        "| long name |      1 |",
        "| b         |     22 |",
    ]


def test_the_kernels_are_checked_before_they_are_timed(monkeypatch, capsys):
    monkeypatch.setattr(kernels, "IMAGES", 1)
    monkeypatch.setattr(kernels, "HEIGHT", 20)
    monkeypatch.setattr(kernels, "WIDTH", 28)
    threads = torch.get_num_threads()
    try:
        kernels.main.main(["--runs", "1"], standalone_mode=False)
        printed = capsys.readouterr().out
        rows = ("pseudo-labels", "class means, distance loss, forward", "reading the features")
        assert all(f"| {row}" in printed for row in rows)
        assert "plain loop: 0 of 560 labels differ" in printed
        monkeypatch.setattr(
            kernels, "our_distance_loss", lambda *_: (torch.ones(()), torch.ones(1))
        )
        with pytest.raises(UserError, match="^results differ: class means .*, loss "):
            kernels.main.main(["--runs", "1"], standalone_mode=False)
        monkeypatch.setattr(kernels, "loop_pseudo_labels", lambda image, _: 1 - image.labels)
        with pytest.raises(UserError, match="^plain loop: a label differs, its margin"):
            kernels.main.main(["--runs", "1"], standalone_mode=False)
    finally:
        torch.set_num_threads(threads)
