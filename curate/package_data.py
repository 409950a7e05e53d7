"""Files that ship with the package: SQL in catalog/, recipes in recipes/."""

from pathlib import Path

from curate.errors import OptionError

_PACKAGE = Path(__file__).resolve().parent
# In a wheel both folders lie inside the package; in a checkout they lie next to it.
_ROOT = _PACKAGE / "shipped" if (_PACKAGE / "shipped").is_dir() else _PACKAGE.parent

SQL_DIR = _ROOT / "catalog"
RECIPES_DIR = _ROOT / "recipes"


def read_sql(name: str) -> str:
    """The text of a shipped SQL file, for example `stages/reliability`."""
    return (SQL_DIR / f"{name}.sql").read_text(encoding="utf-8")


def list_names(folder: Path, suffix: str) -> list[str]:
    """The shipped names below `folder`, without the suffix, with `/` between folders."""
    return sorted(
        path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob(f"*{suffix}")
    )


def first_comment(path: Path, prefix: str) -> str:
    """The first line of a shipped file, which says what it is for."""
    return path.read_text(encoding="utf-8").split("\n", 1)[0].removeprefix(prefix).strip()


def find_file(folder: Path, suffix: str, name: str, kind: str) -> Path:
    """The shipped file of that name. Raises OptionError that lists the existing names."""
    names = list_names(folder, suffix)
    if name not in names:
        raise OptionError(f"no {kind} called '{name}'; there are: {', '.join(names)}")
    return folder / f"{name}{suffix}"
