"""The process of a command line: its first words come before anything large is imported."""

import sys
from typing import NoReturn

from curate.progress import say_first
from curate.verbs import VERBS


def main() -> NoReturn:
    """Run the command line of this process."""
    words = sys.argv[1:]
    verb = next((word for word in words if not word.startswith("-")), "")
    if verb in (*VERBS, "list") and not {"-h", "--help", "-q", "--quiet", "--version"} & set(words):
        say_first(f"{verb}: starting")
    from curate.cli.app import main

    main()


if __name__ == "__main__":
    main()
