"""Files of the cache count only while they are whole and nobody else can write them."""

from __future__ import annotations

import grp
import os
import pwd

import pytest

from velm_cli.metrics import cache


def read(path) -> bytes:
    return b"".join(cache.read_pieces(path))


@pytest.mark.parametrize("content", [b"", b"x", bytes(range(256)) * 9000])
def test_what_is_kept_is_read(tmp_path, content):
    cache.keep(tmp_path / "new/file", [content[:3], content[3:]])
    assert read(tmp_path / "new/file") == content
    cache.keep(tmp_path / "new/file", [b"other"])
    assert read(tmp_path / "new/file") == b"other"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file"]


def test_every_changed_byte_and_every_cut_is_noticed(tmp_path):
    path = tmp_path / "file"
    cache.keep(path, [b"some parses"])
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with pytest.raises(ValueError, match="has changed"):
            read(path)
        path.write_bytes(whole[:place])
        with pytest.raises(ValueError, match="has changed"):
            read(path)
    path.write_bytes(whole + b"\n")
    with pytest.raises(ValueError, match="has changed"):
        read(path)


def test_what_others_can_change_is_not_read(tmp_path, monkeypatch):
    path = tmp_path / "file"
    cache.keep(path, [b"some parses"])
    monkeypatch.setattr(cache, "_is_of_one", lambda group, user: False)
    for mode in (0o664, 0o646):
        path.chmod(mode)
        with pytest.raises(ValueError, match="can be changed by others"):
            read(path)
    path.chmod(0o600)
    assert read(path) == b"some parses"
    if os.geteuid() == 0:
        os.chown(path, 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(ValueError, match="can be changed by others"):
        read(path)


def test_a_private_group_is_nobody_else(tmp_path, monkeypatch):
    path = tmp_path / "file"
    cache.keep(path, [b"some parses"])
    path.chmod(0o664)
    user = pwd.getpwuid(path.stat().st_uid).pw_name
    for name, members, private in [(user, [], True), (user, [user], True), (user, ["x"], False), ("users", [], False)]:
        entry = grp.struct_group((name, "x", path.stat().st_gid, members))
        monkeypatch.setattr(grp, "getgrgid", lambda group, entry=entry: entry)
        assert cache.can_be_changed_by_others(path) is not private


def test_a_file_is_never_left_writable_to_a_group(tmp_path):
    before = os.umask(0o002)  # of systems with a group for each user
    try:
        cache.keep(tmp_path / "file", [b"some parses"])
    finally:
        os.umask(before)
    assert read(tmp_path / "file") == b"some parses"


def test_links_and_pipes_are_not_read(tmp_path):
    cache.keep(tmp_path / "file", [b"some parses"])
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with pytest.raises(OSError, match="symbolic links"):
        read(tmp_path / "link")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="can be changed by others"):  # and at once
        read(tmp_path / "pipe")
    cache.keep(tmp_path / "link", [b"new"])  # takes the place of the link, not of what it names
    assert read(tmp_path / "file") == b"some parses" and read(tmp_path / "link") == b"new"
