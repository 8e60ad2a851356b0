"""Files are read only if they are regular and of a bounded size, and each mishap has one sentence."""

import os
import socket

import pytest

from idefics_jax.utils.paths import as_path, read_json, read_regular


def test_a_regular_file_is_read_to_its_limit(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"12345")
    assert read_regular(file, 5) == b"12345"
    with pytest.raises(ValueError, match=r"file has more than 4 bytes, the most that is read of such a file\.$"):
        read_regular(file, 4)
    (tmp_path / "link").symlink_to(file)
    assert read_regular(tmp_path / "link", 5) == b"12345"


def test_objects_of_a_store_are_read_to_their_limit():
    url = as_path("memory://bucket/file")
    url.write_bytes(b"12345")
    assert read_regular(url, 5) == b"12345"
    with pytest.raises(ValueError, match=r"^memory://bucket/file has more than 4 bytes"):
        read_regular(url, 4)
    with pytest.raises(FileNotFoundError, match=r"^memory://bucket/none does not exist\.$"):
        read_regular(as_path("memory://bucket/none"), 5)


def test_what_is_not_a_file_is_named(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "to-device").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        for name, kind in [("", "directory"), ("fifo", "named pipe"), ("socket", "socket"), ("to-device", "device")]:
            with pytest.raises(ValueError, match=rf"{name} is a {kind}, not a file\.$"):
                read_regular(tmp_path / name, 100)


def test_what_cannot_be_opened_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none does not exist\.$"):
        read_regular(tmp_path / "none", 100)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(OSError, match=r"loop cannot be read: Too many levels of symbolic links\.$"):
        read_regular(tmp_path / "loop", 100)
    with pytest.raises(OSError, match=r"cannot be read: File name too long\.$"):
        read_regular(tmp_path / ("x" * 300), 100)
    with pytest.raises(OSError, match=r"a\\x00b' cannot be read: .*null"):
        read_regular(tmp_path / "a\0b", 100)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"file/inside cannot be read: Not a directory\.$"):
        read_regular(tmp_path / "file" / "inside", 100)


def test_json(tmp_path):
    file = tmp_path / "values.json"
    for content in (b'{"a": [1, "\xc3\xa9"]}', b'\xef\xbb\xbf{"a": [1, "\xc3\xa9"]}'):
        file.write_bytes(content)
        assert read_json(file) == {"a": [1, "é"]}
    bad = {
        b'{"a": \xff}': r"values\.json is not UTF-8 text \(byte 6\); save it as UTF-8\.$",
        b"{": r"values\.json is not valid JSON: Expecting property name.*\.$",
        b"[" * 100_000: r"values\.json is not valid JSON: its brackets are nested too deep\.$",
        b"9" * 5_000: r"values\.json is not valid JSON: Exceeds the limit",
    }
    for content, message in bad.items():
        file.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read_json(file)
    with pytest.raises(ValueError, match="more than 3 bytes"):
        read_json(file, 3)
