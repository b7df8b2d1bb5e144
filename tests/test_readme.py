"""Every Python snippet in the README and the documentation runs as printed."""

import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
FENCE = re.compile(
    r"^(?P<indent> *)(?P<ticks>`{3,}|:{3,})(?P<info>[^`\n]+)\n(?P<body>.*?)^ *(?P=ticks) *$", re.DOTALL | re.MULTILINE
)


def documents() -> list[Path]:
    pages = [path for path in sorted(ROOT.glob("docs/**/*.md")) if "_build" not in path.parts]
    return [ROOT / "README.md", *pages]


def python_blocks(path: Path) -> list[tuple[int, str]]:
    """
    :param path: a Markdown file
    :return: the 1-based line on which each Python block starts, and its source
    """
    text = path.read_text(encoding="utf-8")
    blocks = []
    for match in FENCE.finditer(text):
        if match["info"].strip() == "python":
            source = re.sub(rf"^{match['indent']}", "", match["body"], flags=re.MULTILINE)
            blocks.append((text.count("\n", 0, match.start("body")) + 1, source))
    return blocks


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", documents(), ids=name)
def test_python_blocks_are_marked_so_that_they_run(path: Path) -> None:
    infos = [match["info"].strip() for match in FENCE.finditer(path.read_text(encoding="utf-8"))]
    assert [info for info in infos if re.search(r"\b(py|python|python3|pycon|ipython)\b", info) and info != "python"] == []


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in documents() if python_blocks(path)], ids=name)
def test_python_blocks_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for line, source in python_blocks(path):
        # The empty lines let a traceback name the line of the document
        exec(compile("\n" * (line - 1) + source, str(path), "exec"), namespace)
