"""A stage's run: one-line errors, progress with a rate, output only from rank 0."""

import errno
import io
import json
import os
import signal
import time
from types import SimpleNamespace

import click
import pytest

import cag.runtime.program
import cag.runtime.progress
from cag.runtime.errors import UserError
from cag.runtime.files import atomic_file
from cag.runtime.program import RECORDS, run, run_stage
from cag.runtime.progress import finished_bars, is_main_process, progress


def command(body):
    """A click command without arguments."""
    return click.command()(lambda: body())


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

    @click.command()
    @click.argument("names", nargs=-1)
    def work(names):
        with progress("adapt", 3, "iterations", images=8) as advance:
            for _ in advance.waiting(range(3)):
                advance()
                time.sleep(0.01)

    finished_bars.clear()
    run_stage(work)
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
    assert not RECORDS.exists()


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
    said = "extract: 3 images in 16.0 s, 0.2 images/s, 25 % waiting for data\n"
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


def test_names_in_any_script_are_printed_on_a_terminal_that_lacks_them(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, "ascii"))
    run(command(lambda: print("道路", flush=True)))
    assert written.getvalue().decode() == "\\u9053\\u8def\n"
