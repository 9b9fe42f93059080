"""Where nobody watches a terminal, long work says a line now and then, and short work nothing."""

import pytest

from velm_cli import progress
from velm_cli.progress import progress_bar


def test_short_work_says_nothing_in_a_file(capsys):
    assert list(progress_bar(range(100), "counting")) == list(range(100))
    with progress_bar(what="counting", total=3, unit="image") as bar:
        bar.update(3)
        bar.set_postfix_str("what it is about")
        bar.refresh()
    assert capsys.readouterr().err == ""


def test_long_work_says_lines(capsys, monkeypatch):
    monkeypatch.setattr(progress, "EVERY", 0.0)
    with progress_bar(what="features", total=2000, unit="image") as bar:
        for _ in range(4):
            bar.update(500)
    with progress_bar(what="download", total=None, unit="B", unit_scale=True) as bar:
        bar.update(1500)
    lines = capsys.readouterr().err.split("\n")
    assert lines.pop() == "" and all(lines) and "\r" not in "".join(lines)
    assert lines[2].startswith("features: 1000 of 2000 images, 50%, 00:00 gone, 00:00 left")
    assert lines[-1].startswith("download: 1.50k B, 00:00 gone")


@pytest.mark.parametrize("shown", [True, False])
def test_on_a_terminal_it_is_a_bar(capsys, monkeypatch, shown):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    list(progress_bar(range(3), "counting", shown=shown))
    assert ("\r" in capsys.readouterr().err) is shown
