"""What can be no path is refused where it is written, not where it is opened."""

import pytest

from inoculate.core.errors import InputError
from inoculate.core.paths import local_path
from inoculate.data.labeled_file import LabeledFile
from inoculate.data.sources import check
from inoculate.models.checkpoint import locate
from inoculate.models.vectors import read_vector


@pytest.mark.parametrize("text", ["a\0b", "~\0/a.csv", "x" * 300, "~nobody-of-this-name/x"])
def test_no_path(text):
    looks = (
        lambda: local_path(text, "field"),
        lambda: check(text, "train"),
        lambda: check(f"sst2={text}", "train"),
        lambda: locate(text),
        lambda: read_vector(text),
        lambda: LabeledFile(path=text, desired="a", restricted="b", unrelated="c").check(),
    )
    for look in looks:
        with pytest.raises(InputError, match=r"not a path that can be looked at|no such model") as caught:
            look()
        assert len(str(caught.value)) < 600


def test_a_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_path("~/missing/file.csv", "data") == tmp_path / "missing" / "file.csv"
    (tmp_path / "file").touch()
    assert local_path(f"{tmp_path}/file/below", "data").name == "below"
