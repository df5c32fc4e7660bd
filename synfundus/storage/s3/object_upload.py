"""Write objects of an S3 store and verify them afterwards."""

from __future__ import annotations

import base64
import hashlib
import io
from typing import IO, Any

from synfundus.errors import StorageError
from synfundus.storage.s3.object_store import SHA256_METADATA, call, fetch, stat
from synfundus.storage.s3.store_connection import shared_deadline

PART_BYTES = 32 * 2**20
"""Objects up to this size are written in one PUT; larger ones in parts of this size."""
_MAX_PARTS = 9_000


def put(url: str, content: IO[bytes]) -> str:
    """Write an object from the start of a stream, completely or not at all; return its sha256.

    Raises:
        StorageError: The store refused, gave no valid answer within the deadline, or has other bytes than were sent.
    """
    with shared_deadline():
        return _put(url, content)


def _put(url: str, content: IO[bytes]) -> str:
    sha256 = hashlib.file_digest(_at_start(content), "sha256").hexdigest()
    size = content.tell()
    _at_start(content)
    md5 = _put_whole(url, content.read(), sha256) if size <= PART_BYTES else _put_parts(url, content, size, sha256)
    info = stat(url)
    if info.size != size or info.sha256 not in {"", sha256}:
        raise StorageError(
            f"cannot write: the store has another object ({info.describe()}) than was sent ({size} bytes)",
            where=url,
            hint="two programs may be writing the same object",
        )
    if info.etag != md5:  # the entity tag is not an MD5 in every store: check the content
        fetch(url, _DiscardingSink(), sha256=sha256)
    return sha256


class _DiscardingSink(io.BytesIO):
    """Discards what is written."""

    def write(self, data: Any, /) -> int:  # noqa: ANN401 - any buffer
        return len(data)


def _at_start(content: IO[bytes]) -> Any:  # noqa: ANN401 - hashlib asks for a protocol that typeshed keeps private
    content.seek(0)
    return content


def _md5(data: bytes) -> bytes:
    return hashlib.md5(data, usedforsecurity=False).digest()


def _put_whole(url: str, data: bytes, sha256: str) -> str:
    md5 = _md5(data)
    checks = {"ContentMD5": base64.b64encode(md5).decode(), "Metadata": {SHA256_METADATA: sha256}}
    call("write", url, "put_object", Body=data, **checks)
    return md5.hex()


def _put_parts(url: str, content: IO[bytes], size: int, sha256: str) -> str:
    part_bytes = max(PART_BYTES, -(-size // _MAX_PARTS))
    upload = str(call("write", url, "create_multipart_upload", Metadata={SHA256_METADATA: sha256})["UploadId"])
    try:
        digests = b""
        parts = []
        for number, data in enumerate(iter(lambda: content.read(part_bytes), b""), start=1):
            digests += _md5(data)
            parts.append({"PartNumber": number, "ETag": _put_part(url, upload, number, data)})
        _complete(url, upload, parts)
    except BaseException:
        _abort(url, upload)
        raise
    return f"{_md5(digests).hex()}-{len(parts)}"


def _put_part(url: str, upload: str, number: int, data: bytes) -> str:
    md5 = base64.b64encode(_md5(data)).decode()
    answer = call("write", url, "upload_part", UploadId=upload, PartNumber=number, Body=data, ContentMD5=md5)
    return str(answer["ETag"])


def _complete(url: str, upload: str, parts: list[dict[str, Any]]) -> None:
    try:
        call("write", url, "complete_multipart_upload", UploadId=upload, MultipartUpload={"Parts": parts})
    except FileNotFoundError:
        stat(url)  # the first answer was lost: the upload is complete, and `put` checks the object


def _abort(url: str, upload: str) -> None:
    try:
        call("stop writing", url, "abort_multipart_upload", UploadId=upload)
    except (StorageError, FileNotFoundError):
        return  # report the error that ended the upload, not this one
