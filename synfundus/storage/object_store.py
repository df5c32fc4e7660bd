"""Objects of an S3 store: read, written, listed and removed, each answer checked against what was asked.

A store's transport notices a cut connection. It does not notice a body that is short or altered while its headers
agree with it. So a range must have the length that was asked for, a whole object must match a hash: the sha256 that
is written beside it as metadata, or the MD5 that is the entity tag of a plain upload.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import IO, Any

from synfundus.errors import CorruptShard, StorageError
from synfundus.storage import bulk_download
from synfundus.storage.store_connection import Client, request
from synfundus.storage.store_faults import BeyondEnd, ObjectChanged, WrongAnswer

CHUNK_BYTES = 16 * 2**20
"""Most bytes of one GET."""
PART_BYTES = 32 * 2**20
"""Objects up to this size are written in one PUT; larger ones in parts of it."""
_MOST_PARTS = 9_000
_MOST_ROUNDS = 6
_MOST_READS_FOR_TWO_EQUAL = 12
_MOST_KEYS_PER_REQUEST = 1_000
_SHA256_METADATA = "synfundus-sha256"
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_MD5 = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class ObjectInfo:
    """What the store says about an object.

    Attributes:
        size: Bytes.
        etag: Its entity tag, which changes with the content.
        sha256: What its writer recorded; empty if nothing.
        md5: What the entity tag says; empty if it is none (uploaded in parts, encrypted).
        modified: When it was written; None if the store does not say.
    """

    size: int
    etag: str
    sha256: str
    md5: str
    modified: datetime | None

    def shown(self) -> str:
        """Return the facts that tell two versions of an object apart."""
        written = f", written {self.modified:%Y-%m-%d %H:%M:%S %Z}" if self.modified else ""
        return f"{self.size} bytes, etag {self.etag}{written}"


def split(url: str) -> tuple[str, str]:
    """Return (bucket, key) of a location."""
    bucket, _, key = url.removeprefix("s3://").partition("/")
    return bucket, key.strip("/")


def _info(answer: dict[str, Any], size: int) -> ObjectInfo:
    etag = str(answer.get("ETag", "")).strip('"')
    metadata = {str(name).lower(): str(value) for name, value in answer.get("Metadata", {}).items()}
    plain = answer.get("ServerSideEncryption", "AES256") == "AES256" and "SSECustomerAlgorithm" not in answer
    return ObjectInfo(
        size=size,
        etag=etag,
        sha256=metadata.get(_SHA256_METADATA, ""),
        md5=etag if plain and _MD5.fullmatch(etag) else "",
        modified=answer.get("LastModified"),
    )


def read_range(url: str, start: int, size: int, *, etag: str = "") -> tuple[bytes, ObjectInfo]:
    """Return (bytes, facts of the object); fewer bytes than asked for only at the end of the object.

    Raises:
        StorageError: The store refused, or gave no good answer within the deadline.
        FileNotFoundError: The object is not there.
        BeyondEnd: ``start`` is not before the end of the object.
        ObjectChanged: It does not have ``etag`` any more.
    """
    bucket, key = split(url)
    condition = {"IfMatch": f'"{etag}"'} if etag else {}

    async def get(client: Client) -> tuple[bytes, ObjectInfo]:
        answer = await client.get_object(Bucket=bucket, Key=key, Range=f"bytes={start}-{start + size - 1}", **condition)
        async with answer["Body"] as body:
            data = bytes(await body.read())
        return _checked_range(answer, data, start, size)

    return request("read", url, get)


def _checked_range(answer: dict[str, Any], data: bytes, start: int, size: int) -> tuple[bytes, ObjectInfo]:
    stated = _CONTENT_RANGE.fullmatch(str(answer.get("ContentRange", "")))
    if stated is None:  # a whole object, from a store that does not know ranges
        if len(data) != int(answer.get("ContentLength", -1)):
            raise WrongAnswer("the answer has another length than it states")
        if start >= len(data):
            raise BeyondEnd
        return data[start : start + size], _info(answer, len(data))
    first, last, total = (int(number) for number in stated.groups())
    expected = min(size, total - start)
    if first != start or last - first + 1 != expected or len(data) != expected:
        raise WrongAnswer(f"{len(data)} bytes in the answer, {expected} expected")
    return data, _info(answer, total)


def stat(url: str) -> ObjectInfo:
    """Return what the store says about an object.

    It asks for one byte rather than for the headers alone: a refusal without a body does not say its reason.

    Raises:
        StorageError: The store refused, or gave no good answer within the deadline.
        FileNotFoundError: The object is not there.
    """
    bucket, key = split(url)
    try:
        return read_range(url, 0, 1)[1]
    except BeyondEnd:

        async def head(client: Client) -> ObjectInfo:
            answer = await client.head_object(Bucket=bucket, Key=key)
            return _info(answer, int(answer["ContentLength"]))

        return request("look at", url, head)


def read_whole(url: str) -> bytes:
    """Return the content of an object, checked as in `fetch`."""
    sink = io.BytesIO()
    fetch(url, sink)
    return sink.getvalue()


def fetch(url: str, sink: IO[bytes], *, sha256: str = "") -> str:
    """Copy a whole object to the start of a stream and check it; returns its sha256.

    Args:
        url: The object.
        sink: Open for writing and seeking; what is in it is replaced.
        sha256: The hash it must have; if empty, the one its writer recorded, else the MD5 of its entity tag.

    Raises:
        CorruptShard: The content does not match, whatever is tried; the message names both sides.
        StorageError: The store refused, or gave no good answer within the deadline.
        FileNotFoundError: The object is not there.
    """
    if sha256 and _fetch_straight(url, sink, sha256):
        return sha256
    problem = ""
    for round_number in range(_MOST_ROUNDS):
        sink.seek(0)
        sink.truncate()
        try:
            info, found, md5 = _copy_chunks(url, sink, twice=round_number > 0, with_md5=not sha256)
        except ObjectChanged:
            problem = "it was replaced again and again while it was read"
            continue
        expected = sha256 or info.sha256
        if expected and info.sha256 not in {"", expected}:
            raise CorruptShard(
                f"another object than the one recorded: sha256 {info.sha256} instead of {expected} ({info.shown()})",
                where=url,
            )
        if found == expected if expected else md5 == (info.md5 or md5):
            return found
        problem = (
            f"sha256 {found} instead of {expected}" if expected else f"MD5 {md5} instead of {info.md5}"
        ) + f" ({info.shown()})"
    raise CorruptShard(
        f"the object does not match its hash after {_MOST_ROUNDS} readings: {problem}", where=url, reason="checksum"
    )


def _fetch_straight(url: str, sink: IO[bytes], sha256: str) -> bool:
    """Try the fast way once; returns whether it brought what was asked for."""
    sink.seek(0)
    sink.truncate()
    return bulk_download.copy_straight(*split(url), sink) == sha256


def _copy_chunks(url: str, sink: IO[bytes], *, twice: bool, with_md5: bool) -> tuple[ObjectInfo, str, str]:
    """Copy an object; returns (facts, sha256, MD5). With ``twice`` a chunk counts when two readings of it agree.

    The MD5 is of use only where no sha256 is known, and would take longer than the rest.
    """
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    info, position = None, 0
    while info is None or position < info.size:
        try:
            read = _read_agreed if twice else read_range
            data, info = read(url, position, CHUNK_BYTES, etag=info.etag if info else "")
        except BeyondEnd:
            data, info = b"", stat(url)
            if info.size > position:
                raise ObjectChanged(url) from None
        sink.write(data)
        sha256.update(data)
        if with_md5:
            md5.update(data)
        position += len(data)
    return info, sha256.hexdigest(), md5.hexdigest()


def _read_agreed(url: str, start: int, size: int, *, etag: str) -> tuple[bytes, ObjectInfo]:
    seen = set()
    for _ in range(_MOST_READS_FOR_TWO_EQUAL):
        data, info = read_range(url, start, size, etag=etag)
        digest = hashlib.sha256(data).digest()
        if digest in seen:
            return data, info
        seen.add(digest)
    raise CorruptShard(f"bytes {start} to {start + size} are different at each reading", where=url)


def put(url: str, content: IO[bytes]) -> str:
    """Write an object from the start of a stream; it is there completely or not at all. Returns its sha256.

    Raises:
        StorageError: The store refused, gave no good answer within the deadline, or has other bytes than were sent.
    """
    sha256 = hashlib.file_digest(_at_start(content), "sha256").hexdigest()
    size = content.tell()
    _at_start(content)
    md5 = _put_whole(url, content.read(), sha256) if size <= PART_BYTES else _put_parts(url, content, size, sha256)
    info = stat(url)
    if info.size != size or info.sha256 not in {"", sha256}:
        raise StorageError(
            f"cannot write: the store has another object than was sent: {info.shown()}, sent were {size} bytes",
            where=url,
            hint="two programs may be writing the same object",
        )
    if info.etag != md5:  # not every store's tag is an MD5; the content is
        fetch(url, _Nowhere(), sha256=sha256)
    return sha256


class _Nowhere(io.BytesIO):
    """Takes bytes and drops them."""

    def write(self, data: Any, /) -> int:  # noqa: ANN401 - any buffer
        return len(data)


def _at_start(content: IO[bytes]) -> Any:  # noqa: ANN401 - hashlib asks for a protocol that typeshed keeps private
    content.seek(0)
    return content


def _md5(data: bytes) -> Any:  # noqa: ANN401 - the hash type has no public name
    return hashlib.md5(data, usedforsecurity=False)


def _put_whole(url: str, data: bytes, sha256: str) -> str:
    bucket, key = split(url)
    md5 = _md5(data)

    async def put_object(client: Client) -> None:
        await client.put_object(
            Bucket=bucket,
            Key=key,
            Body=data,
            ContentMD5=base64.b64encode(md5.digest()).decode(),
            Metadata={_SHA256_METADATA: sha256},
        )

    request("write", url, put_object)
    return str(md5.hexdigest())


def _put_parts(url: str, content: IO[bytes], size: int, sha256: str) -> str:
    bucket, key = split(url)
    part_bytes = max(PART_BYTES, -(-size // _MOST_PARTS))

    async def create(client: Client) -> str:
        answer = await client.create_multipart_upload(Bucket=bucket, Key=key, Metadata={_SHA256_METADATA: sha256})
        return str(answer["UploadId"])

    upload = request("write", url, create)
    try:
        digests = b""
        parts = []
        for number, data in enumerate(iter(lambda: content.read(part_bytes), b""), start=1):
            digests += _md5(data).digest()
            parts.append({"PartNumber": number, "ETag": _put_part(url, upload, number, data)})
        _complete(url, upload, parts)
    except BaseException:
        _abort(url, upload)
        raise
    return f"{_md5(digests).hexdigest()}-{len(parts)}"


def _put_part(url: str, upload: str, number: int, data: bytes) -> str:
    bucket, key = split(url)

    async def upload_part(client: Client) -> str:
        answer = await client.upload_part(
            Bucket=bucket,
            Key=key,
            UploadId=upload,
            PartNumber=number,
            Body=data,
            ContentMD5=base64.b64encode(_md5(data).digest()).decode(),
        )
        return str(answer["ETag"])

    return request("write", url, upload_part)


def _complete(url: str, upload: str, parts: list[dict[str, Any]]) -> None:
    bucket, key = split(url)

    async def complete(client: Client) -> None:
        await client.complete_multipart_upload(
            Bucket=bucket, Key=key, UploadId=upload, MultipartUpload={"Parts": parts}
        )

    try:
        request("write", url, complete)
    except FileNotFoundError:
        stat(url)  # a first answer was lost: the upload is done, and `put` checks what is there


def _abort(url: str, upload: str) -> None:
    bucket, key = split(url)

    async def abort(client: Client) -> None:
        await client.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload)

    try:
        request("stop writing", url, abort)
    except (StorageError, FileNotFoundError):
        return  # what ended the upload is the error to report


def list_objects(
    url: str, *, recursive: bool, most: int = 0, page_keys: int = _MOST_KEYS_PER_REQUEST
) -> Iterator[tuple[str, int]]:
    """Yield (name below the folder, bytes) page by page; without ``recursive`` folders come as ``name/``, 0 bytes."""
    bucket, key = split(url)
    prefix = f"{key}/" if key else ""
    token: dict[str, str] = {}
    limits: dict[str, Any] = {} if recursive else {"Delimiter": "/"}
    limits["MaxKeys"] = most or page_keys
    while True:

        async def page(client: Client, token: dict[str, str] = token) -> dict[str, Any]:
            answer: dict[str, Any] = await client.list_objects_v2(Bucket=bucket, Prefix=prefix, **limits, **token)
            return answer

        answer = request("list", url, page)
        for folder in answer.get("CommonPrefixes", []):
            yield str(folder["Prefix"])[len(prefix) :], 0
        for entry in answer.get("Contents", []):
            name = str(entry["Key"])[len(prefix) :]
            if name and not name.endswith("/"):
                yield name, int(entry["Size"])
        if most or not answer.get("IsTruncated"):
            return
        token = {"ContinuationToken": str(answer["NextContinuationToken"])}


def delete(urls: list[str]) -> None:
    """Remove objects of one bucket; not an error if they are gone."""
    for first in range(0, len(urls), _MOST_KEYS_PER_REQUEST):
        batch = urls[first : first + _MOST_KEYS_PER_REQUEST]
        bucket = split(batch[0])[0]
        keys = [{"Key": split(url)[1]} for url in batch]

        async def delete_objects(
            client: Client, bucket: str = bucket, keys: list[dict[str, str]] = keys
        ) -> list[dict[str, Any]]:
            answer = await client.delete_objects(Bucket=bucket, Delete={"Objects": keys, "Quiet": True})
            return list(answer.get("Errors", []))

        refused = request("remove", batch[0], delete_objects)
        if refused:
            raise StorageError(
                f"cannot remove {len(refused)} of {len(batch)} objects", where=batch[0], hint="check the rights"
            )
