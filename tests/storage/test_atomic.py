import pytest

from curate.storage.atomic import atomic_write


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(ValueError, match="half-way"), atomic_write(tmp_path / "a") as temporary:
        temporary.write_text("half")
        raise ValueError("half-way")
    assert not list(tmp_path.iterdir())
    with atomic_write(tmp_path / "a") as temporary:
        temporary.write_text("whole")
        assert not (tmp_path / "a").exists()
    assert (tmp_path / "a").read_text() == "whole"
