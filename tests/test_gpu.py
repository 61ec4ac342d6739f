"""`make gpu`: parts that fail, hang or are killed end alone, and every part runs at toy size on a CPU."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import __main__ as program
from benchmarks.gpu.parts import PARTS
from benchmarks.gpu.runner import MARK, Part, Setting, Skip, run_all, run_apart, run_here

CPU = torch.device("cpu")
FOUND = f"""print('{MARK}{{"lines": ["seen"], "peak": 5000000000}}')"""
FAKES = {
    "passes": (FOUND, "passed", "seen"),
    "skips": (f"{FOUND.replace('seen', 'no room')}\nraise SystemExit(77)", "skipped", "no room"),
    "fails": ("print('before')\nraise ValueError('wrong | value')", "failed", "ValueError: wrong | value"),
    "is killed": ("import os\nos.kill(os.getpid(), 9)", "failed", "killed by SIGKILL"),
    "hangs": ("import time\nprint('waiting', flush=True)\ntime.sleep(60)", "failed", "stopped after 2 s, its limit"),
    "says nothing": ("pass", "failed", "exit code 0"),
}


def fake(name):
    return [sys.executable, "-c", FAKES[name][0]]


@pytest.mark.parametrize("name", FAKES)
def test_the_end_of_a_part(name):
    _, result, line = FAKES[name]
    start = time.monotonic()
    found = run_apart(name, fake(name), 2)
    assert found.result == result and line in found.lines, found
    assert time.monotonic() - start < 30 and found.seconds > 0
    assert found.peak == (5 * 10**9 if name in ("passes", "skips") else None)


def test_what_a_part_started_ends_with_it(tmp_path):
    """A part that hangs may have processes of its own, such as those of a compiler."""
    starts = "p = subprocess.Popen(['sleep', '60'])"
    code = f"import subprocess, time; {starts}; open('{tmp_path}/id', 'w').write(str(p.pid)); time.sleep(60)"
    run_apart("hangs", [sys.executable, "-c", code], 2)
    child = Path("/proc") / (tmp_path / "id").read_text()
    deadline = time.monotonic() + 20
    while child.exists() and "Z" not in (child / "stat").read_text().split()[2] and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not child.exists() or (child / "stat").read_text().split()[2] == "Z"


def test_the_table_is_written_after_each_part(tmp_path):
    file, seen = tmp_path / "card.md", []

    def command(part):
        seen.append(file.read_text())
        return fake(part.name)

    done = run_all([Part(name, None, 2) for name in FAKES], file, CPU, 100, command)
    assert [one.result for one in done] == [result for _, result, _ in FAKES.values()]
    for index, text in enumerate(seen):
        assert text.count("still to run") == len(FAKES) - index, "as it was before this part"
    table = file.read_text()
    assert "still to run" not in table and f"torch {torch.__version__}" in table and "| 5.00 |" in table
    assert "ValueError: wrong \\| value" in table, "the last lines of what failed"


def test_no_part_begins_when_the_time_is_over(tmp_path):
    done = run_all([Part(name, None, 2) for name in ("passes", "skips")], tmp_path / "a.md", CPU, 0.5, None)
    assert {one.result for one in done} == {"skipped"} and "0 s of all parts are over" in done[0].lines[0]


def test_a_reason_to_skip_is_no_failure(capsys):
    def run(setting):
        raise Skip("needs 80 GB")

    assert run_here(Part("large", run, 1), Setting(CPU, 1, True)) == 77
    assert '"needs 80 GB"' in capsys.readouterr().out


@pytest.fixture
def restored():
    """Parts have a process of their own, and change settings of torch."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    with torch.no_grad():
        yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
    torch.set_grad_enabled(True)


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_every_part_at_toy_size(part, restored):
    lines = part.run(Setting(CPU, 1 << 34, toy=True))
    assert lines and all(isinstance(line, str) for line in lines)


def test_parity_fails_when_a_model_is_wrong(restored, monkeypatch):
    from wan.modules import model

    monkeypatch.setattr(model, "rotate", lambda x, table: x.float())
    with pytest.raises(AssertionError, match="transformer: relative errors above"):
        PARTS[0].run(Setting(CPU, 1 << 34, toy=True))


def test_streaming_fails_when_a_copy_is_late(restored, monkeypatch):
    from wan.streaming import Lane

    monkeypatch.setattr(Lane, "copy", lambda self, target, source, after: target.zero_())
    part = next(part for part in PARTS if part.name == "streaming")
    with pytest.raises(AssertionError, match="other values"):
        part.run(Setting(CPU, 1 << 34, toy=True))


def test_limits_of_the_parts_leave_time_for_each():
    assert len({part.name for part in PARTS}) == len(PARTS)
    assert max(part.limit for part in PARTS) < program.BUDGET < 600


def test_the_command_runs_a_part_and_names_the_table(tmp_path, capfd):
    code = program.main(["--device", "cpu", "--parts", "rates", "--results", str(tmp_path / "new")])
    assert code == 0, capfd.readouterr().err
    table = (tmp_path / "new" / "cpu.md").read_text()
    assert "| rates | passed |" in table and "toy sizes" in table and "GB/s" in table


def test_a_python_without_torch_is_told(monkeypatch, capsys):
    monkeypatch.setattr(program, "find_spec", lambda name: None if name in ("torch", "av") else name)
    assert program.main([]) == 2
    error = capsys.readouterr().err
    assert "lacks torch, av; name a Python" in error and error.count("\n") == 1


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_passes_what_is_given():
    given = ["PYTHON=/a/python", "RESULTS=my folder", "DEVICE=cpu"]
    folder = Path(program.__file__).parents[2]
    command = ["make", "-n", "--no-print-directory", "gpu", *given]  # make test runs this, too
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    command = "/a/python -m benchmarks.gpu --device 'cpu' --results 'my folder'"
    assert done.stdout.split() == command.split()
