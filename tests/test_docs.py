"""The reference in docs/ is what the code says."""

import importlib.util
import re
from pathlib import Path

import pytest

from curate.cli.builder import build_command
from curate.cli.commands import COMMANDS

SHARED_FLAGS = {"--help", "--version", "--quiet", "--debug"}
DOCS = Path(__file__).resolve().parents[1] / "docs"
spec = importlib.util.spec_from_file_location("generate", DOCS / "generate_reference.py")
generate = importlib.util.module_from_spec(spec)
spec.loader.exec_module(generate)


@pytest.mark.parametrize("name", generate.PAGES)
def test_a_generated_page_is_up_to_date(name):
    assert (DOCS / name).read_text() == generate.PAGES[name](), "run docs/generate_reference.py"


def test_every_option_in_the_docs_exists():
    """Of the commands named on the line, or of any command where an option stands alone."""
    flags = {name: command_flags(name) for name in COMMANDS}
    for page in [*DOCS.glob("*.md"), DOCS.parent / "README.md"]:
        for code in re.findall(r"```.*?```|`[^`\n]+`", page.read_text(), re.DOTALL):
            for line in code.replace("\\\n", " ").splitlines():
                commands = [
                    name for name in re.findall(r"\bcurate ([\w-]+)", line) if name in flags
                ]
                if not commands and not line.startswith("`--"):
                    continue
                known = set().union(*(flags[name] for name in commands or flags))
                used = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", line))
                assert used <= known | SHARED_FLAGS, f"{page.name}: {line.strip()}"


def command_flags(name: str) -> set[str]:
    return {flag for parameter in build_command(name).params for flag in parameter.opts}


def test_every_link_between_pages_leads_somewhere():
    for page in [*DOCS.glob("*.md"), DOCS.parent / "README.md"]:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"
