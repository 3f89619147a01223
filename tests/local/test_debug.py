"""`Future.debug`: an item that runs in this process, with a debugger where it raises."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from jupyter_client.manager import start_new_kernel

import slurmlaunch
from slurmlaunch import Executor, FutureArray, RunFolderError, attach
from tests.conftest import elsewhere
from tests.support import scripts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

COMMAND = (sys.executable, "-m", "slurmlaunch")


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

    def test_commands_of_others(
        self,
        drawn_numbers: FutureArray[float],
        typed: Callable[[str], None],
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """Commands in the working directory, where others may write, are not run; those in the home folder are."""
        for name in ("home", "work"):
            (tmp_path / name).mkdir()
            (tmp_path / name / ".pdbrc").write_text(f"p 'commands in ' + {name!r}\n")
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        monkeypatch.chdir(tmp_path / "work")
        typed("q\n")
        with pytest.raises(ValueError, match="7"):
            drawn_numbers[7].debug()
        shown = capsys.readouterr().out
        assert ("commands in home" in shown, "commands in work" in shown) == (True, False)

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


def at_terminal(command: Sequence[object], *typed: str, **options: Any) -> tuple[int, str]:
    """Run a command at a terminal of its own, with texts for the debugger; return its exit status and what it shows."""
    ours, theirs = pty.openpty()
    started = subprocess.Popen(list(map(str, command)), stdin=theirs, stdout=theirs, stderr=theirs, **options)
    os.close(theirs)
    shown = b""
    try:
        for text in typed:
            while not shown.endswith(b"(Pdb) "):
                shown += os.read(ours, 4096)
            os.write(ours, f"{text}\n".encode())
            shown += b"\n"
        with contextlib.suppress(OSError):  # the terminal is gone, since the command has ended
            while data := os.read(ours, 4096):
                shown += data
        return started.wait(timeout=60), shown.decode()
    finally:
        started.kill()
        started.wait()
        os.close(ours)


@pytest.mark.slow
def test_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a notebook ``%debug`` in the next cell stops where the item raised."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    manager, client = start_new_kernel(kernel_name="python3", cwd=str(tmp_path))
    typed, shown = iter(["p x * 2", "q"]), []
    run = "Executor('runs', cluster='inline').map_array(lambda x: 1 // (x - 7), range(9))"
    cells = (f"from slurmlaunch import Executor\narray = {run}", "array[7].debug()", "%debug")
    try:
        for cell in cells:
            client.execute_interactive(
                cell,
                allow_stdin=True,
                stdin_hook=lambda _: client.input(next(typed)),
                output_hook=lambda message: shown.append(message["content"].get("text", "")),
                timeout=60,
            )
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert "%debug in the next cell" in "".join(shown)
    assert "14\n" in "".join(shown)


def test_terminal(tmp_path: Path) -> None:
    """In a script at a terminal, pdb stops in the item of a run of which there is a copy, without Slurm."""
    array = Executor(tmp_path / "runs", cluster="inline").map_array(lambda x: 1 // (x - 700), range(1000), tasks=1)
    array.wait()
    script = tmp_path / "debugs.py"
    script.write_text(f"import slurmlaunch\nslurmlaunch.attach({str(array.folder)!r})[700].debug()\n")
    status, shown = at_terminal([sys.executable, script], "p x * 2", "q")
    assert status == 1
    assert "1400" in shown


SUBMITTED = """
    import os, slurmlaunch
    def told(x):
        drawn = slurmlaunch.current_task().rng().random()
        if x == 70:
            raise ValueError(x, drawn, os.environ["MINE"], os.getcwd())
        return drawn
"""


class TestCommand:
    """``slurmlaunch debug`` in a process of its own."""

    @elsewhere
    def test_code_of_the_submission(
        self,
        backend: str,
        beside: Callable[[str], Any],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """It runs the code of the submission as there, in a copy, whatever has become of the module since."""
        monkeypatch.setenv("MINE", "mine")
        monkeypatch.chdir(tmp_path)
        module = beside(textwrap.dedent(SUBMITTED))
        with Executor(tmp_path / "runs", cluster=backend, seed=5) as executor:
            array = executor.map_array(module.told, [7, 70])
        recorded = array[1].exception()
        assert recorded is not None
        shutil.move(array.folder, tmp_path / "copy")
        beside("def told(x):\n    return 'edited'\n")
        with pytest.raises(RunFolderError) as refused:
            attach(tmp_path / "copy")[1].debug(code="submitted")
        command = str(refused.value).partition(": ")[2]
        Path(module.__file__).unlink()
        monkeypatch.delenv("MINE")
        monkeypatch.delenv("SLURM_CONF", raising=False)
        monkeypatch.setenv("TERM", "dumb")

        status, shown = at_terminal([*COMMAND, *shlex.split(command)[1:]], "p (x, drawn)", "l", "q", cwd="/")

        assert status == 1
        assert str(recorded.args[:2]) in shown
        assert f"ValueError: {recorded.args}" in shown
        assert '->\t        raise ValueError(x, drawn, os.environ["MINE"], os.getcwd())' in shown
        done = subprocess.run([*COMMAND, "debug", tmp_path / "copy", "0"], capture_output=True, text=True, check=True)
        assert f"{array[0].result()!r}\n" == done.stdout
        assert "item 0 of told raised nothing" in done.stderr

    def test_script(self, tmp_path: Path) -> None:
        """Functions and classes of a script are as in a task; a line says that the script has changed."""
        text = """
            import sys, slurmlaunch
            class Odd(Exception):
                pass
            def told(x):
                raise Odd(type(x).__module__, sys.modules["__main__"].Odd is Odd)
            if __name__ == "__main__":
                array = slurmlaunch.Executor("runs", cluster="local").map_array(told, [Odd()])
                array.wait()
                print(array.folder)
        """
        folder = scripts.run(tmp_path, text).strip()
        os.utime(tmp_path / "script.py", (4e9, 4e9))

        status, shown = at_terminal([*COMMAND, "debug", folder, 0], "q")

        assert status == 1
        assert "('__main__', True)" in shown
        assert f"{tmp_path}/script.py changed after the submission" in shown

    def test_another_machine(self, drawn_numbers: FutureArray[float], tmp_path: Path) -> None:
        """A folder, a Python or an item that is not there is named; the item runs if it can."""
        manifest = drawn_numbers.folder / "manifest.json"
        content = json.loads(manifest.read_text()) | {"cwd": str(tmp_path / "gone")}
        manifest.write_text(json.dumps(content))
        plan = drawn_numbers.folder / "rounds/0/plan.json"
        plan.write_text(plan.read_text().replace(sys.executable, "/gone/python"))

        done = subprocess.run(
            [*COMMAND, "debug", drawn_numbers.folder, "3"], capture_output=True, text=True, check=False
        )

        assert f"{drawn_numbers[3].result()!r}\n" == done.stdout, done.stderr
        assert f"there is no folder {tmp_path}/gone here, and the item runs in {Path.cwd()}" in done.stderr
        assert f"there is no /gone/python here, and the item runs in {sys.executable}" in done.stderr

        manifest.write_text(json.dumps(content | {"python": "3.9"}))
        done = subprocess.run(
            [*COMMAND, "debug", drawn_numbers.folder, "3"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 2
        assert "was pickled by Python 3.9" in done.stderr
        done = subprocess.run(
            [*COMMAND, "debug", drawn_numbers.folder, "9"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 3
        assert "has no item 9: its items are 0 to 8" in done.stderr
