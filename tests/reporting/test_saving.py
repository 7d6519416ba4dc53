"""Files of reports: written whole in the form of their suffix, or refused before anything is touched."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.reporting.made_up import REPORTS
from torch_gradcheck.errors import InvalidRequestError
from torch_gradcheck.reporting import saving
from torch_gradcheck.reporting.report import Report

REPORT = REPORTS["odd_shapes_and_figures"]


def names_in(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


@pytest.mark.parametrize("kind", [str, Path])
def test_a_saved_report_is_read_back(tmp_path: Path, kind: Any) -> None:
    REPORT.save(kind(tmp_path / "report.JSON"))
    assert Report.load(kind(tmp_path / "report.JSON")) == REPORT
    assert names_in(tmp_path) == ["report.JSON"]


def test_a_page_is_a_whole_document(tmp_path: Path) -> None:
    REPORT.save(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert " – report</title>" in page, "behind the outcome"
    assert "embedding.weight" in page
    REPORT.save(tmp_path / "report.html", title="tests/test_net.py::test_<net>")
    assert "test_net.py::test_&lt;net&gt;</title>" in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["report", "report.txt", "json", ".json", "-"])
def test_another_suffix_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"saved as \.json or \.html, by the suffix of its path, which is"):
        REPORT.save(tmp_path / name)
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("path", [None, 3, b"report.json"], ids=str)
def test_what_is_no_path_is_refused(path: Any) -> None:
    with pytest.raises(InvalidRequestError, match="a report is saved to a path, not to a "):
        REPORT.save(path)


def test_a_path_without_a_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "taken.json").mkdir()
    with pytest.raises(InvalidRequestError, match=r"taken\.json: it is a directory"):
        REPORT.save(tmp_path / "taken.json")
    with pytest.raises(InvalidRequestError, match=r"there is no directory .*missing"):
        REPORT.save(tmp_path / "missing" / "report.json")
    with pytest.raises(InvalidRequestError, match="too long"):
        REPORT.save(tmp_path / f"{'long' * 80}.json")
    with pytest.raises(InvalidRequestError, match="null"):
        REPORT.save(tmp_path / "a\0b.json")


def test_a_name_that_no_system_takes_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="the report cannot be written to"):
        REPORT.save(tmp_path / f"{'long' * 100}.json")


def test_a_file_that_is_there_stays_until_the_new_one_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(saving.Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        REPORT.save(path)
    assert (path.read_text(), names_in(tmp_path)) == ("old", ["report.json"])


def test_a_file_in_a_directory_that_takes_no_new_ones_is_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")
    write_bytes = Path.write_bytes

    def refused(self: Path, content: bytes) -> int:
        if not self.exists():
            raise PermissionError
        return write_bytes(self, content)

    monkeypatch.setattr(Path, "write_bytes", refused)
    REPORT.save(path)
    assert Report.load(path) == REPORT
    with pytest.raises(InvalidRequestError, match=r"cannot be written to .*new\.json"):
        REPORT.save(tmp_path / "new.json")


@pytest.mark.skipif(os.name != "posix", reason="permissions and links of POSIX")
def test_a_link_and_the_permissions_of_its_file_stay(tmp_path: Path) -> None:
    (tmp_path / "kept.json").write_text("old")
    (tmp_path / "kept.json").chmod(0o640)
    (tmp_path / "link.json").symlink_to("kept.json")
    REPORT.save(tmp_path / "link.json")
    assert (tmp_path / "link.json").is_symlink()
    assert Report.load(tmp_path / "kept.json") == REPORT
    assert (tmp_path / "kept.json").stat().st_mode & 0o777 == 0o640


@pytest.mark.skipif(not Path("/dev/null").exists(), reason="there is no device to write to")
def test_a_device_is_written_to_and_stays() -> None:
    saving.write_whole(Path("/dev/null"), "text")
    assert Path("/dev/null").is_char_device()
