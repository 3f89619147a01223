"""`Future.debug`: an item that runs in this process, with a debugger where it raises."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

import slurmlaunch
from slurmlaunch import Executor, FutureArray, RunFolderError, attach

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def drawn(number: int, *, limit: float = 1.0) -> float:
    """Return a random number of the item; item 7 raises."""
    first = float(slurmlaunch.current_task().rng().random())
    if number == 7:
        raise ValueError(number, first)
    return first * limit


@pytest.fixture
def drawn_numbers(tmp_path: Path) -> FutureArray[float]:
    """Return a run with nine random numbers, of which item 7 raised."""
    executor = Executor(tmp_path / "runs", cluster="inline", seed=3)
    return executor.map_array(drawn, range(9), kwargs={"limit": 2.0})


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return a function that has text be typed at the debugger."""
    monkeypatch.delenv("PYTHONBREAKPOINT", raising=False)
    return lambda text: monkeypatch.setattr(sys, "stdin", io.StringIO(text))


class TestDebug:
    """In this process."""

    def test_value(self, drawn_numbers: FutureArray[float], capsys: pytest.CaptureFixture[str]) -> None:
        """An item that raises nothing returns its value, with the same random numbers, and a line says so."""
        path = list(sys.path)

        assert drawn_numbers[3].result() == drawn_numbers[3].debug()

        said = "item 3 of drawn raised nothing in this process, and returned a value of float"
        assert said in capsys.readouterr().err
        assert path == sys.path
        with pytest.raises(slurmlaunch.SlurmlaunchError, match="outside a task"):
            slurmlaunch.current_task()

    def test_frame(
        self, drawn_numbers: FutureArray[float], typed: Callable[[str], None], capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The debugger opens in the frame that raised, in the task of the item."""
        recorded = drawn_numbers[7].exception()
        typed("p number, limit\np slurmlaunch.current_task().item, first\nq\n")

        with pytest.raises(ValueError, match="7") as raised:
            drawn_numbers[7].debug()

        assert recorded is not None
        assert recorded.args == raised.value.args
        shown = capsys.readouterr().out
        assert "(7, 2.0)" in shown
        assert f"(7, {recorded.args[1]})" in shown

    def test_other_debugger(
        self, drawn_numbers: FutureArray[float], monkeypatch: pytest.MonkeyPatch, beside: Callable[[str], Any]
    ) -> None:
        """PYTHONBREAKPOINT names the debugger; 0 opens none."""
        module = beside("frames = []\ndef post_mortem(frame):\n    frames.append(frame)\n")
        monkeypatch.setenv("PYTHONBREAKPOINT", "lies_beside.set_trace")
        with pytest.raises(ValueError, match="7"):
            drawn_numbers[7].debug()
        monkeypatch.setenv("PYTHONBREAKPOINT", "0")
        with pytest.raises(ValueError, match="7"):
            drawn_numbers[7].debug()

        (frame,) = module.frames
        assert "drawn" == frame.tb_frame.f_code.co_name

    def test_single(self, tmp_path: Path) -> None:
        """A call of submit is run with its arguments."""
        assert 8 == Executor(tmp_path / "runs", cluster="inline").submit(pow, 2, exp=3).debug()

    def test_other_code(self, tmp_path: Path, beside: Callable[[str], Any], capsys: pytest.CaptureFixture[str]) -> None:
        """Modules that are not those of the submission are named; the code of the submission is refused then."""
        module = beside("def told(x):\n    return x + 1\n")
        array = Executor(tmp_path / "runs", cluster="inline").map_array(module.told, [1])
        assert 2 == array[0].debug(code="submitted")
        module = beside("def told(x):\n    return x + 10\n")

        assert 11 == attach(array.folder)[0].debug()
        assert "imported another version of lies_beside than the run was submitted with" in capsys.readouterr().err
        with pytest.raises(RunFolderError, match=r"slurmlaunch debug \S+ 0$"):
            array[0].debug(code="submitted")
        with pytest.raises(slurmlaunch.OptionError, match="code"):
            array[0].debug(code="new")


def test_terminal(tmp_path: Path) -> None:
    """In a script at a terminal, pdb stops in the item of a run of which there is a copy, without Slurm."""
    array = Executor(tmp_path / "runs", cluster="inline").map_array(lambda x: 1 // (x - 700), range(1000), tasks=1)
    array.wait()
    script = tmp_path / "debugs.py"
    script.write_text(f"import slurmlaunch\nslurmlaunch.attach({str(array.folder)!r})[700].debug()\n")
    ours, theirs = pty.openpty()
    started = subprocess.Popen([sys.executable, script], stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    try:
        for text in (b"p x * 2\n", b"q\n"):
            while not shown.endswith(b"(Pdb) "):
                shown += os.read(ours, 4096)
            os.write(ours, text)
            shown += b"\n"
        assert 1 == started.wait(timeout=60)
    finally:
        started.kill()
        os.close(ours)
    assert b"1400" in shown
