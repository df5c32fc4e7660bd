"""Read, list and remove objects of an S3 store; every answer is checked against the request.

The transport notices a closed connection, but not a body that is short or altered while its headers agree with it. So
a range must have the requested length, and a whole object must match a hash: the sha256 in its metadata, or the MD5 in
the entity tag of a plain upload. If it has neither (a multipart upload of another program, KMS encryption), each chunk
is read until two reads agree.

Whole objects are first tried over blocking sockets, once: that is three times as fast as an event loop, and on any
fault they are read in chunks.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import IO, Any

from synfundus.errors import CorruptShard, StorageError
from synfundus.storage.s3 import store_connection, store_faults
from synfundus.storage.s3.store_connection import Client, StoreSettings, request, shared_deadline
from synfundus.storage.s3.store_faults import BeyondEnd, ObjectChanged, Verdict, WrongAnswer

CHUNK_BYTES = 16 * 2**20
"""Maximum size of one GET."""
_MAX_ROUNDS = 6
_MAX_READS_UNTIL_EQUAL = 12
_MAX_KEYS_PER_REQUEST = 1_000
SHA256_METADATA = "synfundus-sha256"
"""Metadata key for the hash of an object."""
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_MD5 = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class ObjectInfo:
    """Metadata of an object.

    Attributes:
        size: Bytes.
        etag: Its entity tag, which changes with the content.
        sha256: Recorded by its writer; empty if it was not.
        md5: From the entity tag; empty if that is not an MD5 (multipart upload, encryption).
        modified: When it was written; None if unknown.
    """

    size: int
    etag: str
    sha256: str
    md5: str
    modified: datetime | None

    def describe(self) -> str:
        """Return what distinguishes this version of the object from others."""
        written = f", written {self.modified:%Y-%m-%d %H:%M:%S %Z}" if self.modified else ""
        return f"{self.size} bytes, etag {self.etag}{written}"


def split(url: str) -> tuple[str, str]:
    """Return (bucket, key) of a location."""
    bucket, _, key = url.removeprefix("s3://").partition("/")
    return bucket, key.strip("/")


def call(action: str, url: str, method: str, **arguments: Any) -> dict[str, Any]:  # noqa: ANN401 - passed to the client
    """Call a method of the store's client on an object, as a `request`."""
    bucket, key = split(url)

    async def operation(client: Client) -> dict[str, Any]:
        answer: dict[str, Any] = await getattr(client, method)(Bucket=bucket, Key=key, **arguments)
        return answer

    return request(action, url, operation)


def _info(answer: dict[str, Any], size: int) -> ObjectInfo:
    etag = str(answer.get("ETag", "")).strip('"')
    metadata = {str(name).lower(): str(value) for name, value in answer.get("Metadata", {}).items()}
    plain = answer.get("ServerSideEncryption", "AES256") == "AES256" and "SSECustomerAlgorithm" not in answer
    return ObjectInfo(
        size=size,
        etag=etag,
        sha256=metadata.get(SHA256_METADATA, ""),
        md5=etag if plain and _MD5.fullmatch(etag) else "",
        modified=answer.get("LastModified"),
    )


def read_range(url: str, start: int, size: int, *, etag: str = "") -> tuple[bytes, ObjectInfo]:
    """Return (bytes, metadata of the object); fewer bytes than requested only at the end of the object.

    Raises:
        StorageError: The store refused, or gave no valid answer within the deadline.
        FileNotFoundError: The object does not exist.
        BeyondEnd: ``start`` is not before the end of the object.
        ObjectChanged: Its entity tag is no longer ``etag``.
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
    if stated is None:  # a whole object, from a store that does not support ranges
        if len(data) != int(answer.get("ContentLength", -1)):
            raise WrongAnswer("the length of the answer differs from its header")
        if start >= len(data):
            raise BeyondEnd
        return data[start : start + size], _info(answer, len(data))
    first, last, total = (int(number) for number in stated.groups())
    expected = min(size, total - start)
    if first != start or last - first + 1 != expected or len(data) != expected:
        raise WrongAnswer(f"{len(data)} bytes in the answer, {expected} expected")
    return data, _info(answer, total)


def stat(url: str) -> ObjectInfo:
    """Return the metadata of an object.

    Requests one byte instead of only the headers: the reason of a refusal is in the body.

    Raises:
        StorageError: The store refused, or gave no valid answer within the deadline.
        FileNotFoundError: The object does not exist.
    """
    try:
        return read_range(url, 0, 1)[1]
    except BeyondEnd:
        answer = call("access", url, "head_object")
        return _info(answer, int(answer["ContentLength"]))


def fetch(url: str, sink: IO[bytes], *, sha256: str = "") -> str:
    """Copy a whole object to the start of a stream and check it; return its sha256.

    Args:
        url: The object.
        sink: Open for writing and seeking; its content is replaced.
        sha256: Expected hash; if empty, the one recorded by its writer, else the MD5 in its entity tag, else two reads
            must agree.

    Raises:
        CorruptShard: The content does not match after repeated reads; the message has both hashes.
        StorageError: The store refused, or gave no valid answer within the deadline.
        FileNotFoundError: The object does not exist.
    """
    if sha256:
        sink.seek(0)
        sink.truncate()
        if try_download(*split(url), sink) == sha256:
            return sha256
    problem = confirmed = ""
    with shared_deadline():
        # wrong content is retried by rounds, not by the deadline: a large object on a slow network gets them all
        for rounds in range(1, _MAX_ROUNDS + 1):
            sink.seek(0)
            sink.truncate()
            try:
                info, found, md5 = _copy_chunks(url, sink, twice=rounds > 1, expected_sha256=sha256)
            except ObjectChanged:
                problem = "it was replaced repeatedly while it was read"
            else:
                problem = _mismatch(url, info, found, md5, sha256)
                if not problem:
                    return found
                if confirmed == found:  # the object itself is damaged
                    break
                confirmed = found if rounds > 1 else ""
    raise CorruptShard(
        f"the object does not match its hash after {rounds} readings: {problem}", where=url, reason="checksum"
    )


def _mismatch(url: str, info: ObjectInfo, found: str, md5: str, sha256: str) -> str:
    """Describe how the content differs from its expected hash; empty if it matches.

    Raises:
        CorruptShard: The store has another object than the expected one.
    """
    expected = sha256 or info.sha256
    if expected and info.sha256 not in {"", expected}:
        raise CorruptShard(
            f"another object than the one recorded: sha256 {info.sha256} instead of {expected} ({info.describe()})",
            where=url,
        )
    if expected:
        return "" if found == expected else f"sha256 {found} instead of {expected} ({info.describe()})"
    return "" if md5 == (info.md5 or md5) else f"MD5 {md5} instead of {info.md5} ({info.describe()})"


def _copy_chunks(url: str, sink: IO[bytes], *, twice: bool, expected_sha256: str) -> tuple[ObjectInfo, str, str]:
    """Copy an object; return (metadata, sha256, MD5).

    Args:
        url: The object.
        sink: Destination.
        twice: Read each chunk until two reads agree; always done if the object has no hash.
        expected_sha256: Expected by the caller; the MD5, which is slow, is computed only without it.
    """
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    info, position = None, 0
    while info is None or position < info.size:
        try:
            data, info = read_range(url, position, CHUNK_BYTES, etag=info.etag if info else "")
            if twice or not (expected_sha256 or info.sha256 or info.md5):
                data = _read_agreed(url, position, CHUNK_BYTES, etag=info.etag, first=data)
        except BeyondEnd:
            data, info = b"", stat(url)
            if info.size > position:
                raise ObjectChanged(url) from None
        sink.write(data)
        sha256.update(data)
        if not expected_sha256:
            md5.update(data)
        position += len(data)
    return info, sha256.hexdigest(), md5.hexdigest()


def _read_agreed(url: str, start: int, size: int, *, etag: str, first: bytes) -> bytes:
    """Read a range until two reads agree; ``first`` is the first of them."""
    seen = {hashlib.sha256(first).digest()}
    for _ in range(_MAX_READS_UNTIL_EQUAL - 1):
        data, _ = read_range(url, start, size, etag=etag)
        digest = hashlib.sha256(data).digest()
        if digest in seen:
            return data
        seen.add(digest)
    raise CorruptShard(f"bytes {start} to {start + size} differ at each read", where=url)


def list_objects(
    url: str, *, recursive: bool, limit: int = 0, page_keys: int = _MAX_KEYS_PER_REQUEST
) -> Iterator[tuple[str, int]]:
    """Yield (relative name, size) page by page; without ``recursive`` folders come as ``name/`` with size 0.

    Markers of folders (keys that end in a slash) are no files: with ``limit``, pages are asked for until so many names
    were found that are none.
    """
    bucket, key = split(url)
    prefix = f"{key}/" if key else ""
    token: dict[str, str] = {}
    options: dict[str, Any] = {} if recursive else {"Delimiter": "/"}
    options["MaxKeys"] = min(limit + 1, page_keys) if limit else page_keys  # a folder often begins with its marker
    found = 0
    while True:

        async def page(client: Client, token: dict[str, str] = token) -> dict[str, Any]:
            answer: dict[str, Any] = await client.list_objects_v2(Bucket=bucket, Prefix=prefix, **options, **token)
            if "IsTruncated" not in answer:  # a page of a proxy, which would look like an empty folder
                raise WrongAnswer("the answer is not a listing")
            return answer

        answer = request("list", url, page)
        names = [(str(folder["Prefix"])[len(prefix) :], 0) for folder in answer.get("CommonPrefixes", [])]
        listed = [(str(entry["Key"])[len(prefix) :], int(entry["Size"])) for entry in answer.get("Contents", [])]
        names += [(name, size) for name, size in listed if name and not name.endswith("/")]
        found += len(names)
        yield from names[: limit - found + len(names)] if limit and found > limit else names
        if (limit and found >= limit) or not answer.get("IsTruncated"):
            return
        options["MaxKeys"] = page_keys
        token = {"ContinuationToken": str(answer["NextContinuationToken"])}


def delete(urls: list[str]) -> None:
    """Remove objects of one bucket; not an error if they do not exist."""
    for first in range(0, len(urls), _MAX_KEYS_PER_REQUEST):
        batch = urls[first : first + _MAX_KEYS_PER_REQUEST]
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
                f"cannot remove {len(refused)} of {len(batch)} objects", where=batch[0], hint="check the permissions"
            )


_BLOCK_BYTES = 2**20
_MAX_CONNECTIONS = 16
_MIN_BYTES_PER_S = 64 * 2**10
"""A connection that is slower than this for the length of the deadline counts as failed."""


class _Clients:
    """The blocking client of this process; a forked child builds its own."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.owner = 0
        self.settings: StoreSettings | None = None
        self.client: Any = None


_clients = _Clients()


def _download_client() -> Any:  # noqa: ANN401 - botocore is untyped
    import botocore.session
    from botocore.config import Config

    settings = store_connection.current_settings()
    with _clients.lock:
        if _clients.client is None or _clients.owner != os.getpid() or _clients.settings != settings:
            store_connection.refuse_credentials_in_endpoint()
            store_connection.silence_loggers()
            config = Config(
                connect_timeout=settings.connect_timeout_s,
                read_timeout=settings.read_timeout_s,
                retries={"mode": "standard", "total_max_attempts": 1},
                max_pool_connections=_MAX_CONNECTIONS,
                tcp_keepalive=True,
                response_checksum_validation="when_required",
            )
            session = botocore.session.Session()
            session.register_component("data_loader", store_connection.service_descriptions())
            _clients.client = session.create_client("s3", config=config)
            _clients.owner, _clients.settings = os.getpid(), settings
        return _clients.client


def forget_download_client() -> None:
    """Close the sockets; the next download reads the environment again."""
    with _clients.lock:
        client, owner = _clients.client, _clients.owner
        _clients.client = None
    if client is not None and owner == os.getpid():
        client.close()


def try_download(bucket: str, key: str, sink: IO[bytes]) -> str:
    """Try once to copy an object to the start of a stream; return its sha256, or an empty string on failure."""
    from botocore.exceptions import BotoCoreError, ClientError
    from urllib3.exceptions import HTTPError

    sha256 = hashlib.sha256()
    deadline_s = store_connection.current_settings().deadline_s
    try:
        answer = _download_client().get_object(Bucket=bucket, Key=key)
        stream = answer["Body"]._raw_stream  # read1 returns what has arrived: a slow sender must not block
        try:
            left = int(answer["ContentLength"])
            marked_s, marked = time.monotonic(), left
            while left > 0 and (block := stream.read1(min(left, _BLOCK_BYTES))):
                sink.write(block)
                sha256.update(block)
                left -= len(block)
                elapsed_s = time.monotonic() - marked_s
                if elapsed_s > deadline_s:
                    if marked - left < elapsed_s * _MIN_BYTES_PER_S:
                        break
                    marked_s, marked = time.monotonic(), left
        finally:
            answer["Body"].close()
    except ClientError as error:
        if store_faults.classify(error).verdict in {Verdict.RENEW, Verdict.STOP}:
            forget_download_client()  # the next client reads the credentials again
        return ""
    except (BotoCoreError, HTTPError, OSError, ValueError, KeyError):
        return ""
    return "" if left else sha256.hexdigest()
