"""`curate doctor`."""

import sys

import pytest

import curate
from curate.stages import doctor as module


@pytest.fixture(scope="module")
def findings() -> dict[str, str]:
    return dict(curate.doctor())


def test_it_names_versions_limits_and_encoders_that_load(findings):
    import duckdb

    assert findings["duckdb"] == duckdb.__version__
    assert findings["python"].endswith(sys.executable)
    assert "GiB at most" in findings["memory"]
    assert findings["encoder pixels"] == "loads, images of 8 pixels"


def test_what_does_not_work_says_why_and_ends_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "_PACKAGES", ("no-such-package",))
    monkeypatch.setattr(module, "_SELF_CONTAINED", ("nosuch",))
    monkeypatch.setenv("TMPDIR", "shown")
    findings = dict(curate.doctor())
    assert findings["no-such-package"] == "not installed"
    assert findings["encoder nosuch"].startswith("no encoder called 'nosuch'")
    assert findings["$TMPDIR"] == "shown"
