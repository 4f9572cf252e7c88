"""The file in which commands find the service's address."""

from pathlib import Path

import pytest

from app.operations.supervisor import _publish_address


def test_a_reader_never_finds_an_address_file_without_the_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, write = tmp_path / "address", Path.write_text

    def write_later(path: Path, text: str) -> int:
        assert not address.exists()  # while the text is written, it has no content yet
        return write(path, text)

    monkeypatch.setattr(Path, "write_text", write_later)
    with _publish_address(address, "http://127.0.0.1:1"):
        assert address.read_text() == "http://127.0.0.1:1\n"
        assert [path.name for path in tmp_path.iterdir()] == ["address"]
    assert not address.exists()
