"""A stage's run: one-line errors, progress with a rate, output only from rank 0."""

import errno
import fcntl
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import click
import psutil
import pytest

import cag.runtime.program
import cag.runtime.progress
from cag.commands.terminal import print_rows
from cag.runtime import environment, interrupts, start
from cag.runtime.errors import UserError
from cag.runtime.files import atomic_file
from cag.runtime.program import RECORDS, read_records, run, run_stage
from cag.runtime.progress import finished_bars, is_main_process, progress


def command(body):
    """A click command that takes any arguments."""
    return click.command()(click.argument("names", nargs=-1)(lambda names: body()))


def fail(error):
    raise error


@pytest.fixture(autouse=True)
def no_arguments(monkeypatch):
    monkeypatch.setattr("sys.argv", ["stage"])
    monkeypatch.delenv("RANK", raising=False)


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets."""
    clock = SimpleNamespace(now=100.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(cag.runtime.progress, "time", clock)
    return clock


def test_a_stage_that_succeeds_returns(capsys):
    run(command(lambda: print("done")))
    assert capsys.readouterr() == ("done\n", "")


@pytest.mark.parametrize("message", ["a.png: not an image", "a.png: not\nan image\n"])
def test_a_users_error_is_one_line_and_status_1(capsys, message):
    with pytest.raises(SystemExit) as caught:
        run(command(lambda: fail(UserError(message))))
    assert caught.value.code == 1
    assert capsys.readouterr() == ("", "error: a.png: not an image\n")


def test_a_stage_that_succeeds_leaves_a_record(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["stages/adapt.py", "round1", "warmup"])

    def work():
        with progress("adapt", 3, "iterations", images=8) as advance:
            for _ in advance.waiting(range(3)):
                advance()
                time.sleep(0.01)

    finished_bars.clear()
    run_stage(command(work))
    record = json.loads((RECORDS / "adapt@round1.json").read_text())
    assert record["stage"] == "adapt@round1"
    assert record["images"] == 24
    assert record["seconds"] > 24 / record["images_per_second"] > 0.03
    assert 0 <= record["waiting_share"] < 1
    assert record["processes"] == 1 and "cores" in record["device"]


def test_a_stage_of_an_experiment_leaves_its_record_in_the_project(tmp_path, monkeypatch):
    copy = tmp_path / ".dvc/tmp/exps/tmpab12"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    monkeypatch.setenv("DVC_EXP_NAME", "urban-sign")
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "abc123")
    monkeypatch.setattr("sys.argv", ["stages/index.py"])
    run_stage(command(lambda: None))
    record = json.loads((tmp_path / RECORDS / "urban-sign/index.json").read_text())
    assert (record["stage"], record["commit"]) == ("index", "abc123")
    assert not (tmp_path / RECORDS / "index.json").exists()  # the workspace's own run
    monkeypatch.chdir(tmp_path)  # an experiment in the workspace is both
    run_stage(command(lambda: None))
    assert (tmp_path / RECORDS / "index.json").exists()


def test_no_record_of_what_did_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        run_stage(command(lambda: fail(UserError("no"))))
    monkeypatch.setattr("sys.argv", ["stages/index.py", "--help"])
    run_stage(command(print))
    assert not list(RECORDS.glob("*.json"))


def test_a_second_run_of_a_stage_says_who_is_at_work(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["stages/prepare.py", "source"])

    def again():
        with pytest.raises(SystemExit) as caught:
            run_stage(command(lambda: fail(AssertionError("two at work"))))
        assert caught.value.code == 1
        monkeypatch.setattr("sys.argv", ["stages/prepare.py", "target"])
        run_stage(command(lambda: print("another stage")))

    run_stage(command(again))
    out, said = capsys.readouterr()
    assert out == "another stage\n" and len(said.splitlines()) == 1
    assert said.startswith(f"error: prepare@source is running already (process {os.getpid()} on ")
    monkeypatch.setattr("sys.argv", ["stages/prepare.py", "source"])
    run_stage(command(lambda: print("free again")))
    assert capsys.readouterr().out == "free again\n"


def test_a_stage_runs_where_nothing_grants_locks_or_records(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as drive:
        drive.setattr(fcntl, "flock", lambda *_: fail(OSError(errno.ENOLCK, "No locks available")))
        run_stage(command(lambda: print("done")))
    out, said = capsys.readouterr()
    assert out == "done\n" and said.startswith("note: no lock (") and len(said.splitlines()) == 1
    assert "stage" in read_records()
    other = tmp_path / "other"
    other.mkdir()
    monkeypatch.chdir(other)
    (other / ".scratch").touch()
    run_stage(command(lambda: print("done")))
    out, said = capsys.readouterr()
    assert out == "done\n" and "note: no record of this run" in said and "Traceback" not in said


@pytest.mark.parametrize(
    "change",
    [
        {"started": 5},
        {"started": "yesterday"},
        {"started": "2026-01-01T00:00:00"},
        {"seconds": "long"},
        {"seconds": None},
        {"images_per_second": []},
        {"versions": ["torch"]},
        {"device": None},
        {"stage": None},
    ],
)
def test_a_damaged_record_is_passed_over(tmp_path, monkeypatch, change):
    monkeypatch.chdir(tmp_path)
    run_stage(command(lambda: None))
    (whole,) = read_records().values()
    (RECORDS / "other.json").write_text(json.dumps({**whole, "stage": "other"} | change))
    (RECORDS / "deep.json").write_text("[" * 100_000)
    assert list(read_records()) == ["stage"]


@pytest.mark.parametrize(
    "variables",
    [
        {"WORLD_SIZE": "two"},
        {"WORLD_SIZE": "0"},
        {"WORLD_SIZE": "-1"},
        {"WORLD_SIZE": "9" * 5000},
        {"WORLD_SIZE": "2"},  # and nothing else, as no launcher does
        {"WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "2", "RANK": "0"},
        {"RANK": "1"},
        {"RANK": "first"},
        {"LOCAL_WORLD_SIZE": "1.5"},
    ],
)
def test_odd_variables_of_a_launch_are_one_line(tmp_path, monkeypatch, capsys, variables):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cag.runtime.program.time, "sleep", lambda _: None)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as caught:
        run_stage(command(lambda: print("ran")))
    out, said = capsys.readouterr()
    assert caught.value.code == 1 and not out
    assert len(said.splitlines()) == 1 and list(variables)[0] in said


def test_a_launch_is_read_from_its_variables(monkeypatch):
    assert environment.launch() == (0, 1, 1)
    whole = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "1"}
    for name, value in {**whole, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    assert environment.launch() == (3, 4, 2)


@pytest.mark.parametrize(("text", "expected"), [("", None), ("0", 0), ("1.5", 1.5), ("1e3", 1000)])
def test_seconds_are_a_number(monkeypatch, text, expected):
    monkeypatch.setenv("CAG_CHECKPOINT_SECONDS", text)
    assert environment.seconds("CAG_CHECKPOINT_SECONDS") == expected


@pytest.mark.parametrize("text", ["abc", "-1", "nan", "inf", "1,5", "30 s"])
def test_other_seconds_are_refused(monkeypatch, text):
    monkeypatch.setenv("CAG_CHECKPOINT_SECONDS", text)
    with pytest.raises(UserError, match=f"CAG_CHECKPOINT_SECONDS is '{text}'; expected seconds"):
        environment.seconds("CAG_CHECKPOINT_SECONDS")


def test_ctrl_c_during_the_imports_is_one_line(tmp_path):
    (tmp_path / "programs").mkdir()
    prepare = "from cag.runtime.start import prepare\nprepare()\n"
    # A library that swallows it.
    swallow = "import time\nprint('importing', flush=True)\ntry:\n    time.sleep(60)\nexcept:\n"
    (tmp_path / "programs/__init__.py").write_text(prepare)
    (tmp_path / "programs/stage.py").write_text(f"{swallow}    raise ImportError\n")
    with subprocess.Popen(
        [sys.executable, "-m", "programs.stage"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, f"{interrupts.MESSAGE}\n")


def test_workers_end_with_a_killed_parent_and_leave_ctrl_c_to_it():
    program = (
        "import os, time\n"
        "from concurrent.futures import ProcessPoolExecutor\n"
        "from cag.runtime.interrupts import follow_parent\n"
        "pool = ProcessPoolExecutor(1, initializer=follow_parent)\n"
        "print(pool.submit(os.getpid).result(), flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as parent:
        worker = psutil.Process(int(parent.stdout.readline()))
        worker.send_signal(signal.SIGINT)
        time.sleep(0.2)
        assert worker.is_running()
        parent.kill()
    worker.wait(timeout=30)


def test_an_import_of_the_library_changes_nothing_in_another_program(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "mine")
    before = signal.getsignal(signal.SIGINT)
    start.prepare()  # sys.argv is no program of ours
    assert signal.getsignal(signal.SIGINT) is before
    assert os.environ["MPLBACKEND"] == "mine"


def test_a_backend_that_matplotlib_does_not_know_ends_nothing():
    code = "import sys; sys.argv = ['cag']; import cag.commands, matplotlib.figure"
    variables = os.environ | {"MPLBACKEND": "nonsense"}
    subprocess.run([sys.executable, "-c", code], env=variables, check=True)


@pytest.fixture
def interrupts_heard():
    """Ctrl-C reaches this process, also where a shell's background job runs the tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_that_a_library_swallows_is_still_one(capsys, interrupts_heard):
    def body():
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(30)
        except KeyboardInterrupt:
            raise ImportError("cannot import name") from None

    with pytest.raises(SystemExit) as caught:
        run(command(body))
    assert caught.value.code == 130
    assert capsys.readouterr().err == f"{interrupts.MESSAGE}\n"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("write failed: errno = 28, error message = ..."), "the disk: No space left"),
        (ValueError("I/O error: No space left on device (os error 28)"), "the disk: No space left"),
        (OSError(errno.EMFILE, "Too many open files", "a.h5"), "a.h5: Too many open files; close"),
        (OSError(errno.EIO, "Input/output error", "a"), "a: Input/output error; check the disk"),
        (
            OSError(errno.ENOSPC, "No space left", "a", None, "b"),
            "b: No space left on device; free",
        ),
        (MemoryError(), "the memory: Cannot allocate memory; close other programs"),
        (RuntimeError("can't start new thread"), "the system allows no more processes or threads"),
        (OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)), "the system allows no more processes"),
        (OSError(errno.EAGAIN, "Resource", "a.h5"), "a.h5: Resource temporarily unavailable; an"),
    ],
)
def test_each_refusal_says_what_to_do(capsys, error, said):
    with pytest.raises(SystemExit) as caught:
        run(command(lambda: fail(error)))
    assert caught.value.code == 1
    assert capsys.readouterr().err.startswith(f"error: {said}")


def test_a_users_error_under_a_progress_bar_is_still_one_line(capsys):
    def body():
        with progress("prepare", 3, "images") as advance:
            advance()
            raise UserError("a.png: not an image")

    with pytest.raises(SystemExit):
        run(command(body))
    assert capsys.readouterr() == ("", "error: a.png: not an image\n")


@pytest.mark.parametrize("error", [ZeroDivisionError(), FileNotFoundError(errno.ENOENT, "none")])
def test_a_defect_keeps_its_traceback(error):
    with pytest.raises(type(error)):
        run(command(lambda: fail(error)))


def test_what_the_disk_refuses_is_one_line_and_status_1(capsys, tmp_path):
    (tmp_path / "file").touch()
    for body, said in (
        (
            lambda: (tmp_path / "file/below").write_text(""),
            f"{tmp_path}/file/below: Not a directory",
        ),
        (lambda: tmp_path.write_text(""), f"{tmp_path}: Is a directory"),
        (lambda: fail(OSError(errno.ENOSPC, "No space left on device")), "the disk: No space left"),
    ):
        with pytest.raises(SystemExit) as caught:
            run(command(body))
        assert caught.value.code == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {said}")


def test_a_deleted_folder_is_one_line(capsys, tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(SystemExit) as caught:
        run(command(lambda: Path("a").absolute()))
    assert caught.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: the current folder has been deleted")


def test_wrong_usage_is_clicks_to_explain(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["stage", "--no-such-option"])
    with pytest.raises(SystemExit) as caught:
        run(command(lambda: None))
    assert caught.value.code == 2
    assert "--no-such-option" in capsys.readouterr().err


def test_an_interruption_is_one_line_and_status_130(capsys):
    with pytest.raises(SystemExit) as caught:
        run(command(lambda: fail(KeyboardInterrupt())))
    assert caught.value.code == 130
    assert capsys.readouterr().err.strip() == "interrupted; the next run goes on where it can"


def test_progress_ends_in_a_line_with_the_rate(capsys, clock):
    with progress("extract", 6, "images") as advance:
        advance(2)
        clock.now += 1.5
        advance(4, "note")
    assert capsys.readouterr() == ("extract: 6 images in 1.5 s, 4.0 images/s\n", "")


def test_without_a_bar_progress_is_said_every_minute(capsys, clock):
    """As in a log, where nothing would show that a long training goes on."""
    with progress("pretrain", 400, "iterations") as advance:
        advance(100, resumed=True)
        for loss in ("0.9", "0.8", "0.7"):
            clock.now += 40
            advance(20, f"loss {loss}")
        err = capsys.readouterr().err
    assert err == "pretrain: 140 of 400 iterations, 0.5 iterations/s loss 0.8\n"


@pytest.mark.parametrize(
    ("seconds", "rate"), [(2, "0.5 runs/s"), (20, "3.0 runs/min"), (1200, "3.0 runs/h")]
)
def test_slow_work_has_a_rate_by_the_minute_or_hour(capsys, clock, seconds, rate):
    with progress("grid", 1, "runs") as advance:
        clock.now += seconds
        advance()
    assert capsys.readouterr().out == f"grid: 1 runs in {seconds}.0 s, {rate}\n"


def test_resumed_units_do_not_count_for_the_rate(capsys, clock):
    with progress("pretrain", 100, "iterations") as advance:
        advance(90, resumed=True)
        clock.now += 5
        advance(10)
    assert capsys.readouterr().out == "pretrain: 10 iterations in 5.0 s, 2.0 iterations/s\n"


def test_the_share_of_waiting_is_said(capsys, clock):
    def images():
        for _ in range(3):
            clock.now += 1  # before an image comes, and before the end
            yield "image"
        clock.now += 1

    with progress("extract", 3, "images") as advance:
        for image in advance.waiting(images()):
            clock.now += 4
            advance()
            assert image == "image"
    said = "extract: 3 images in 16.0 s, 11.2 images/min, 25 % waiting for data\n"
    assert capsys.readouterr() == (said, "")


def test_waiting_passes_an_error_on(capsys):
    def images():
        yield "image"
        raise UserError("a.png: not an image")

    with pytest.raises(UserError), progress("extract", 3, "images") as advance:
        assert list(zip(advance.waiting(images()), range(1), strict=False)) == [("image", 0)]
        list(advance.waiting(images()))
    assert capsys.readouterr() == ("", "")


def test_a_termination_cleans_up(capsys, tmp_path):
    """A launcher terminates the other processes when one has failed."""

    def body():
        with atomic_file(tmp_path / "features.h5") as partial:
            partial.write_text("half")
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(30)  # where it arrives

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught:
        run(command(body))
    assert caught.value.code == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr() == ("", "")
    assert signal.getsignal(signal.SIGTERM) == before


def test_another_process_gives_rank_0_the_first_word(capsys, monkeypatch):
    waited = []
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setattr(cag.runtime.program.time, "sleep", waited.append)
    with pytest.raises(SystemExit) as caught:
        run(command(lambda: fail(UserError("a.png: not an image"))))
    assert caught.value.code == 1 and sum(waited) > 1
    assert capsys.readouterr() == ("", "error (process 2): a.png: not an image\n")


@pytest.mark.parametrize(("rank", "speaks"), [("0", True), ("1", False)])
def test_rank_0_alone_speaks(capsys, monkeypatch, rank, speaks):
    monkeypatch.setenv("RANK", rank)
    assert is_main_process() == speaks
    with progress("extract", 1, "images") as advance:
        advance()
    out, err = capsys.readouterr()
    assert bool(out) == speaks and err == ""


@pytest.mark.parametrize("closed", ["stdin", "stdout", "stderr"])
def test_a_closed_stream_ends_nothing(monkeypatch, closed):
    """As of a service, or after `>&-`, where Python has None in its place."""
    printed = []
    monkeypatch.setattr(sys, closed, None)

    def body():
        print_rows([{"a": "b"}])
        printed.append((sys.stdin.isatty(), print("c", file=sys.stderr)))

    run(command(body))
    getattr(sys, closed).close()
    assert printed


def test_names_in_any_script_are_printed_on_a_terminal_that_lacks_them(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, "ascii"))
    run(command(lambda: print("道路", flush=True)))
    assert written.getvalue().decode() == "\\u9053\\u8def\n"
