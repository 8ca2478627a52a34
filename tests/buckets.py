"""Object stores on this machine: servers of s3:// and gs://, and a bucket in memory."""

import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from etils.epath.backend import fsspec_backend
from fsspec.implementations.memory import MemoryFileSystem

from jaxmatch.runtime import paths

BUCKET = "bucket"
SERVERS = {
    "s3": (
        "import sys, time\n"
        "from moto.server import ThreadedMotoServer\n"
        "ThreadedMotoServer('localhost', int(sys.argv[1]), verbose=False).start()\n"
        "time.sleep(1e6)\n"
    ),
    "gs": (
        "import sys, time\n"
        "from gcp_storage_emulator.server import create_server\n"
        "create_server('localhost', int(sys.argv[1]), in_memory=True).start()\n"
        "time.sleep(1e6)\n"
    ),
}
NEEDED = {
    "s3": ("s3fs", "moto", "flask", "flask_cors"),
    "gs": ("gcsfs", "gcp_storage_emulator"),
}
MAKE = {
    "s3": "import boto3; boto3.client('s3').create_bucket(Bucket='bucket')",
    "gs": (
        "import json, os, urllib.request\n"
        "urllib.request.urlopen(urllib.request.Request("
        "os.environ['STORAGE_EMULATOR_HOST'] + '/storage/v1/b?project=p', "
        "json.dumps({'name': 'bucket'}).encode(), {'Content-Type': 'application/json'}))\n"
    ),
}


@contextlib.contextmanager
def serving(scheme):
    """A server with an empty bucket; gives the environment of processes that use it."""
    missing = [name for name in NEEDED[scheme] if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f'{", ".join(missing)} not installed: pip install "jaxmatch[test-buckets]"')
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    address = f"http://localhost:{port}"
    found = {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "STORAGE_EMULATOR_HOST": address,
        "TENSORSTORE_GCS_HTTP_URL": address,
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    }
    server = subprocess.Popen(
        [sys.executable, "-c", SERVERS[scheme], str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(100):
            with socket.socket() as client:
                if client.connect_ex(("localhost", port)) == 0:
                    break
            assert server.poll() is None
            time.sleep(0.2)
        subprocess.run([sys.executable, "-c", MAKE[scheme]], env=os.environ | found, check=True)
        yield found
    finally:
        server.send_signal(signal.SIGKILL)
        server.wait()


class Memory(MemoryFileSystem):
    """A bucket of this process alone, which counts what is written to it."""

    store = {}  # noqa: RUF012 - as in its base
    pseudo_dirs = []  # noqa: RUF012
    cachable = False

    def __init__(self):
        super().__init__()
        self.store, self.pseudo_dirs, self.written = {}, [], []

    @classmethod
    def _strip_protocol(cls, path):
        return path.partition("://")[2].rstrip("/") if "://" in path else path.rstrip("/")

    def _open(self, path, mode="rb", **options):
        if mode == "wb":
            self.written.append(path)
        return super()._open(path, mode, **options)


@contextlib.contextmanager
def in_memory():
    """``s3://bucket`` is a bucket in memory while the block runs."""
    files = Memory()
    files.pseudo_dirs.append(BUCKET)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fsspec_backend, "fs", lambda path: files)
        patch.setattr(paths, "installed", lambda name: True)
        paths.check_bucket.cache_clear()
        yield files
    paths.check_bucket.cache_clear()
