"""Whether a PNG file left by an interrupted command is complete."""

from __future__ import annotations

from synfundus.storage import filesystem

_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"


def is_complete_png(url: str) -> bool:
    """Whether a PNG file exists and has its first and last chunk."""
    if not filesystem.exists(url):
        return False
    size = filesystem.file_size(url)
    return (
        size > len(_PNG_START) + len(_PNG_END)
        and filesystem.read_range(url, 0, len(_PNG_START)) == _PNG_START
        and filesystem.read_range(url, size - len(_PNG_END), len(_PNG_END)) == _PNG_END
    )
