"""Each option stands once: command line, Python, recipes and plan take it from the signature."""

import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import make_catalog

import curate
from curate.cli.builder import build_command
from curate.cli.commands import COMMANDS
from curate.errors import OptionError
from curate.options import read_parameters
from curate.recipe import load_recipe
from curate.verbs import RECIPE_VERBS, VERBS

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("name", VERBS)
def test_every_parameter_of_a_verb_is_an_option_with_help(name):
    function = VERBS[name].load()
    parameters = read_parameters(function)
    without_option = set(inspect.signature(function).parameters) - set(parameters)
    assert without_option <= {"catalog"}
    assert all(parameter.option.help.endswith(".") for parameter in parameters.values())
    assert function.__doc__


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_the_options_of_its_verb_and_shows_their_defaults(name, capsys):
    command = build_command(name)
    flags = {flag for parameter in command.params for flag in parameter.opts}
    parameters = read_parameters(COMMANDS[name].verb.load())
    for parameter in parameters.values():
        expected = parameter.name if parameter.is_positional else parameter.flag
        assert expected in flags
    with pytest.raises(SystemExit):
        command.main(args=["--help"], prog_name=f"curate {name}")
    text = re.sub(r"[^\w.,/()-]+", " ", capsys.readouterr().out)
    for parameter in parameters.values():
        assert parameter.is_positional or parameter.flag in text
        default = parameter.default
        is_shown = isinstance(default, str | int | float) and not isinstance(default, bool)
        if is_shown and "/" not in str(default):  # long values are wrapped
            assert f"({default})" in text
    assert "Example" in text


def test_old_spellings_still_work_and_are_hidden():
    aliases = {
        ("score", "from"): "metric_file",
        ("verify", "sources"): "check_sources",
        ("cluster", "sample"): "fit_rows",
        ("cluster", "passes"): "full_iterations",
    }
    for (name, alias), parameter_name in aliases.items():
        parameter = read_parameters(VERBS[name].load())[parameter_name]
        assert alias in parameter.option.aliases
        (option,) = [one for one in build_command(name).params if f"--{alias}" in one.opts]
        assert option.hidden


# A verb, its arguments, the options on the command line, and what is wrong with them.
MISTAKES = [
    ("cluster", {"k": 0}, ["--k", "0"], "--k 0: give a whole number from 1, or auto"),
    ("cluster", {"k": "many"}, ["--k", "many"], "--k many: give a whole number from 1, or auto"),
    (
        "cluster",
        {"distance": "l1"},
        ["--distance", "l1"],
        "--distance l1: choose one of cosine, euclidean",
    ),
    (
        "cluster",
        {"iterations": 1.5},
        ["--iterations", "1.5"],
        "--iterations 1.5: give a whole number from 1",
    ),
    (
        "select",
        {"keep": 7},
        ["--keep", "7"],
        "--keep 7: give a number above 0 and up to 1, or auto",
    ),
    ("select", {"scoring": "x"}, ["--scoring", "x"], "select: --keep is missing"),
    (
        "select",
        {"keep": 0.5, "strategy": "cheapest"},
        ["--keep", "0.5", "--strategy", "cheapest"],
        "no strategy called 'cheapest'; there are: coverage, d2, d4, density, ",
    ),
    (
        "select",
        {"keep": 0.5, "scope": "class", "balance": 0.2},
        ["--keep", "0.5", "--scope", "class", "--balance", "0.2"],
        "--scope class prunes every class equally: leave out --balance and --balance-by",
    ),
    ("probe", {"model": "tiny"}, ["--model", "tiny"], "no model called 'tiny'; there are: "),
    (
        "validate",
        {"keep": [0.5, 2]},
        ["--keep", "0.5", "--keep", "2"],
        "--keep 2: give a number above 0 and up to 1",
    ),
    (
        "score",
        {"metrics": ["el3n"]},
        ["el3n"],
        "no metric called 'el3n'; there are: aum, ",
    ),
    ("gallery", {"out": "a.jpg"}, ["--out", "a.jpg"], "the picture is a PNG: "),
]


@pytest.mark.parametrize(("name", "arguments", "words", "message"), MISTAKES)
def test_a_mistake_gives_the_same_line_in_python_on_the_command_line_and_in_a_recipe(
    tmp_path, capsys, name, arguments, words, message
):
    with pytest.raises(OptionError) as error:
        getattr(curate, name)(tmp_path / "catalog", **arguments)
    line = str(error.value)
    assert line.startswith(message)

    from curate.cli.app import main

    with pytest.raises(SystemExit) as end:
        main([name, *words, "-c", str(tmp_path / "catalog")])
    assert end.value.code == 2
    assert capsys.readouterr().err == f"curate: {line}\n"

    recipe = tmp_path / "recipe.toml"
    values = "\n".join(f"{key} = {value!r}" for key, value in arguments.items())
    recipe.write_text(f"[{name}]\n{values}\n")
    with pytest.raises(OptionError) as error:
        load_recipe(recipe, [], tmp_path / "catalog")
    assert str(error.value) == f"'{recipe}': [{name}] {line}"
    assert not (tmp_path / "catalog").exists()


def test_an_unknown_option_is_named_everywhere(tmp_path, capsys):
    message = "select has no option 'kep'; it takes: keep, scoring, strategy, "
    with pytest.raises(OptionError, match=message):
        curate.select(tmp_path, kep=0.5)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("[select]\nkep = 0.5\n")
    with pytest.raises(OptionError, match=rf"\[select\] {message}"):
        load_recipe(recipe, [])

    from curate.cli.app import main

    with pytest.raises(SystemExit) as end:
        main(["select", "--kep", "0.5"])
    assert end.value.code == 2
    assert "select has no option 'kep'; it takes: keep, " in capsys.readouterr().err


@pytest.mark.parametrize("name", RECIPE_VERBS)
def test_every_option_can_stand_in_a_recipe_with_its_default(tmp_path, name):
    parameters = read_parameters(VERBS[name].load())
    values = {
        key: parameter.default
        for key, parameter in parameters.items()
        if isinstance(parameter.default, str | int | float)
    }
    required = {"embed": {"shards": ["x"]}, "select": {"keep": 0.5}, "score": {"metrics": "aum"}}
    required["export"] = {"selection": "x", "out": "y"}
    required["audit"] = {"selection": "x"}
    required["compare"] = {"selections": ["x", "y"]}
    required["pack"] = {"source": "x", "out": "y"}
    required["import"] = {"table": "x.csv", "key": "k"}
    required["import-vectors"] = {"folder": "x", "shards": ["y"]}
    values |= required.get(name, {})
    lines = [
        f"{key} = {str(value).lower() if isinstance(value, bool) else repr(value)}"
        for key, value in values.items()
    ]
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f"[{name}]\n" + "\n".join(lines))
    _, (step,) = load_recipe(recipe, [])
    assert step.arguments == values


def test_a_default_is_changed_in_one_place(tmp_path):
    """The source says 7 instead of 12: help, Python, plan and a recipe's dry run all follow."""
    for folder in ("curate", "catalog", "recipes"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    source = tmp_path / "curate" / "stages" / "cluster" / "stage.py"
    text = source.read_text()
    option = 'Option("Iterations of k-means on the sample of rows.", minimum=1)\n    ] = '
    assert text.count(f"{option}12,") == 1
    source.write_text(text.replace(f"{option}12,", f"{option}7,"))
    catalog = make_catalog(tmp_path / "world")
    (tmp_path / "recipe.toml").write_text("[cluster]\nk = 3\n")
    program = f"""
import curate
from curate.cli.app import main
def run(*words):
    try:
        main(list(words))
    except SystemExit as end:
        assert not end.code, words
run("cluster", "--help")
curate.cluster({str(catalog.path)!r}, k=3)
print(curate.query({str(catalog.path)!r}, "select iterations from clusterings").to_pylist())
run("plan", "-c", {str(catalog.path)!r})
run("run", "recipe.toml", "--dry-run", "-c", {str(catalog.path)!r})
"""
    answer = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        check=True,
    )
    help_text = " ".join(answer.stdout.replace("│", " ").split())
    assert (
        "--iterations INTEGER Iterations of k-means on the sample of rows. [default: (7)]"
        in help_text
    )
    assert "[{'iterations': 7}]" in answer.stdout
    assert "cluster: 7 iterations on 30 rows, then 2 over every row" in answer.stderr
    assert "[cluster] k=3 distance='cosine' iterations=7 " in answer.stderr
