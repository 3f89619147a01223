"""The README and the pages of docs/ are correct: their code runs, and their links work."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
DOCUMENTS = [*PAGES, ROOT / "CHANGELOG.md", ROOT / "examples" / "README.md"]

STAND_INS = """
from pathlib import Path


def process(file):
    return len(Path(file).read_bytes())


files = [__file__] * 12
"""
"""Names that a page may use without a definition: a function of one file, and a list of paths."""


def blocks(page: Path, *languages: str) -> list[str]:
    """Return a page's fenced blocks of a language."""
    pattern = rf"^```(?:{'|'.join(languages)})\n(.*?)^```$"
    return re.findall(pattern, page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def is_test_module(block: str) -> bool:
    """Return whether a block is a module for pytest."""
    return "import pytest" in block


def pages_with(*, tests: bool) -> list[str]:
    """Return the pages that have code, or test modules, as paths below the root."""
    found = [page for page in PAGES if any(is_test_module(block) == tests for block in blocks(page, "python"))]
    return [str(page.relative_to(ROOT)) for page in found]


def run_python(folder: Path, *arguments: str) -> str:
    """Run Python in a folder; return its output."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, encoding="utf-8", check=False, timeout=240
    )
    lines = [line for line in done.stderr.splitlines() if not line.startswith("slurmlaunch: ")]  # what it says itself
    assert (done.returncode, lines) == (0, [])
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("page", pages_with(tests=False))
def test_code(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page's code runs from its first block to its last, and prints the output in its comments, in that order."""
    monkeypatch.setenv("SLURMLAUNCH_CLUSTER", "local")
    code = [block for block in blocks(ROOT / page, "python") if not is_test_module(block)]
    (tmp_path / "page.py").write_text("\n".join([STAND_INS, *code]), encoding="utf-8")

    printed = run_python(tmp_path, "page.py").splitlines()

    said = re.findall(r"^ *print\(.*\)  # prints (.+)$", "\n".join(code), re.MULTILINE)
    assert [line for line in printed if line in said] == said


@pytest.mark.slow
@pytest.mark.parametrize("page", pages_with(tests=True))
def test_test_modules(page: str, tmp_path: Path) -> None:
    """The tests that a page shows pass."""
    for number, block in enumerate(filter(is_test_module, blocks(ROOT / page, "python"))):
        module = tmp_path / f"test_page_{number}.py"
        module.write_text(STAND_INS + block, encoding="utf-8")
        assert "1 passed" in run_python(tmp_path, "-m", "pytest", module.name)


def test_first_commands() -> None:
    """The README's first two blocks of commands are the newcomer's and the contributor's, and nothing else."""
    assert blocks(README, "bash", "sh")[:2] == [
        "python3 -m venv .venv\n.venv/bin/pip install .\n.venv/bin/python examples/postprocess.py\n",
        "python3 -m venv .venv\n.venv/bin/pip install nox\n.venv/bin/nox\n",
    ]


def test_readme_is_short() -> None:
    """The README has at most 120 lines: everything else has a page of its own."""
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 120


@pytest.mark.parametrize("document", [str(path.relative_to(ROOT)) for path in DOCUMENTS])
def test_links(document: str) -> None:
    """Each link to a file of the repository leads to one, and each anchor to a heading."""
    text = (ROOT / document).read_text(encoding="utf-8")
    targets = [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]

    broken = [target for target in targets if not leads_somewhere(ROOT / document, target)]

    assert broken == []


def leads_somewhere(document: Path, target: str) -> bool:
    """Return whether a link of a document has a file and, if it names one, a heading."""
    path, _, anchor = unquote(target).partition("#")
    file = document.parent / path if path else document
    return file.exists() and (not anchor or anchor in anchors(file))


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_page_is_listed() -> None:
    """The README links each page of docs/, or a page that it links does."""
    listed = linked_from(README) | {page for linked in linked_from(README) for page in linked_from(linked)}

    assert {page.resolve() for page in (ROOT / "docs").glob("*.md")} <= listed


def linked_from(document: Path) -> set[Path]:
    """Return the Markdown files that a document links to."""
    text = document.read_text(encoding="utf-8")
    return {(document.parent / target).resolve() for target in re.findall(r"\]\(([^)\s:#]+\.md)", text)}


ARCHITECTURE = ROOT / "docs" / "architecture.md"


def named_paths(text: str) -> list[str]:
    """Return the paths of files and folders that a page names in code quotes, as it writes them."""
    return re.findall(r"`((?:[\w.]+/)*[\w.]+\.(?:py|md)|(?:[\w.]+/)+)`", text)


def is_path(name: str) -> bool:
    """Return whether a path of the architecture page exists, in the repository or in the package."""
    return (ROOT / name).exists() or (ROOT / "slurmlaunch" / name).exists()


def test_the_architecture_names_files_that_exist() -> None:
    """Each file that docs/architecture.md names exists."""
    assert [name for name in named_paths(ARCHITECTURE.read_text(encoding="utf-8")) if not is_path(name)] == []


def test_the_architecture_lists_every_file() -> None:
    """The table of files in docs/architecture.md has a row for each file of the package, and no other."""
    _, _, rest = ARCHITECTURE.read_text(encoding="utf-8").partition("\n## The files\n")
    listed = re.findall(r"^\| `([\w./]+\.py)` \|", rest.partition("\n## ")[0], re.MULTILINE)

    package = ROOT / "slurmlaunch"
    assert sorted(listed) == sorted(str(path.relative_to(package)) for path in package.rglob("*.py"))


def test_the_architecture_names_definitions_of_its_files() -> None:
    """Each name that a row of the table of changes gives for a file is in that file."""
    text = ARCHITECTURE.read_text(encoding="utf-8")
    rows = [line for line in text.partition("\n## To change X")[2].splitlines() if line.startswith("| ")]

    missing = []
    for row in rows:
        answer = row.strip("| ").rpartition(" | ")[2]
        files = [ROOT / "slurmlaunch" / name for name in named_paths(answer) if name.endswith(".py")]
        sources = "".join(file.read_text(encoding="utf-8") for file in files if file.exists())
        quoted = re.findall(r"`([A-Za-z_]\w*(?:\.\w+)?)`", answer)
        names = [name.rpartition(".")[2] for name in quoted if not name.endswith(".py")]
        missing += [name for name in names if sources and not re.search(rf"\b{name}\b", sources)]
    assert missing == []
