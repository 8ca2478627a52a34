"""Text to path: what is local stays as it is, buckets are known or refused, files are whole."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from buckets import in_memory

from jaxmatch.errors import InputError
from jaxmatch.runtime import paths


@pytest.fixture
def bucket():
    with in_memory() as files:
        yield files


@pytest.mark.parametrize("text", ["runs/a", "/tmp/x", ".", "a:b", "~x", "C:/x", "a//b/../c", ""])
def test_what_is_on_this_machine_is_pathlibs(text):
    assert paths.path(text) == Path(text)
    assert type(paths.path(text)) is type(Path(text))
    assert paths.scheme(paths.path(text)) == ""


@pytest.mark.parametrize("kind", [str, Path])
def test_a_tilde_is_the_home(kind, monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    assert paths.path(kind("~/photos")) == Path("/home/someone/photos")
    assert paths.path(kind("~")) == Path("/home/someone")
    assert paths.path(kind("photos/~")) == Path("photos/~")
    assert paths.path(kind("~of no user/a")) == Path("~of no user/a")


def test_an_unknown_scheme_is_refused():
    for text in ("ftp://host/run", "hdfs://a/b", "GS://bucket/run", "file:///tmp/x"):
        with pytest.raises(InputError, match=r"unknown scheme .*; give a folder.*gs:// and s3://"):
            paths.path(text)


@pytest.mark.parametrize(("scheme", "extra"), [("gs", "gcs"), ("s3", "s3")])
def test_a_missing_extra_is_named_with_its_command(scheme, extra, monkeypatch):
    monkeypatch.setattr(paths, "installed", lambda name: False)
    with pytest.raises(InputError, match=rf'pip install "jaxmatch\[{extra}\]"'):
        paths.path(f"{scheme}://bucket/run")


def test_the_command_line_refuses_a_bucket_without_its_extra(tmp_path):
    hide = (
        "import sys; from jaxmatch.runtime import paths; paths.installed = lambda name: False\n"
        "from jaxmatch.cli.main import main; main(sys.argv[1:])"
    )
    words = ["train", "--config=fixmatch:mnist5k,labels=40", "--workdir=gs://bucket/run"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", hide, *words],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert 'pip install "jaxmatch[gcs]"' in done.stderr
    assert not any(tmp_path.iterdir())  # no folder called gs:


def test_paths_of_buckets(bucket):
    run = paths.path("s3://bucket/run/")
    assert paths.in_bucket(run)
    assert paths.scheme(run) == "s3"
    assert str(run / "a.txt") == "s3://bucket/run/a.txt"
    assert paths.path(Path("s3://bucket/run")) == run  # pathlib drops a slash
    assert paths.path(run) is run
    assert paths.absolute(run) is run
    for text in ("s3://", "s3:///run", "s3:/bucket/run"):
        with pytest.raises(InputError, match="names no bucket"):
            paths.path(text)
    with pytest.raises(InputError, match="there is no bucket s3://other"):
        paths.path("s3://other/run")


def test_files_of_a_bucket(bucket):
    run = paths.path("s3://bucket/run")
    paths.make_folder(run)
    assert bucket.written == []
    paths.write_whole(run / "b" / "c.txt", b"1")
    paths.write_whole(run / "a.txt", b"2")
    paths.write_whole(run.with_name("run2") / "a.txt", b"3")
    assert paths.files_in(run) == ["a.txt", "b/c.txt"]
    with paths.on_this_machine(run) as copy:
        assert (copy / "b" / "c.txt").read_bytes() == b"1"
    assert not copy.exists()
    paths.remove_folder(run)
    assert paths.files_in(run) == []
    assert paths.read_whole(paths.path("s3://bucket/run2/a.txt")) == b"3"


def test_other_errors_of_a_bucket_are_os_errors(bucket, monkeypatch):
    class NoCredentials(Exception):
        pass

    def fail(*arguments, **options):
        raise NoCredentials("who are you?")

    run = paths.path("s3://bucket/run")
    monkeypatch.setattr(bucket, "_open", fail)
    with pytest.raises(OSError, match="who are you"):
        paths.read_whole(run)
    with pytest.raises(OSError, match="who are you"):
        paths.write_whole(run, b"")
    monkeypatch.setattr(bucket, "info", fail)
    paths.check_bucket.cache_clear()
    with pytest.raises(InputError, match=r"cannot be reached \(who are you\?\)"):
        paths.path("s3://bucket/run")


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / "a.txt"
    paths.write_whole(file, b"old")

    def half(self, content):
        os.close(os.open(self, os.O_CREAT | os.O_WRONLY))
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", half)
        with pytest.raises(OSError, match="No space"):
            paths.write_whole(file, b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert file.read_bytes() == b"old"


def test_links_and_devices_are_written_to(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "there")
    paths.write_whole(tmp_path / "link", b"1")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there").read_bytes() == b"1"
    paths.write_whole(Path("/dev/null"), b"1")
    assert Path("/dev/null").is_char_device()


def test_outputs_are_checked_before_the_work(tmp_path):
    paths.check_output(tmp_path / "new.csv")
    with pytest.raises(InputError, match="is a folder"):
        paths.check_output(tmp_path)
    with pytest.raises(InputError, match=r"there is no folder .*none for x\.csv"):
        paths.check_output(tmp_path / "none" / "x.csv")


def test_a_growing_file_of_this_machine_is_there_at_once(tmp_path):
    file = tmp_path / "deep" / "log.txt"
    with paths.Growing(file) as growing:
        growing.write(b"1\n")
        assert file.read_bytes() == b"1\n"
    with paths.Growing(file) as growing:
        growing.write(b"2\n")
    assert file.read_bytes() == b"1\n2\n"


def test_a_growing_file_of_a_bucket_is_copied_seldom_and_when_told(bucket, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(paths.time, "monotonic", lambda: clock[0])
    file = paths.path("s3://bucket/run/log.txt")
    with paths.Growing(file) as growing:
        for number in range(100):
            growing.write(b"%d\n" % number)
        assert bucket.written == ["bucket/run/log.txt"]
        assert paths.read_whole(file) == b"0\n"
        growing.flush()
        assert paths.read_whole(file).count(b"\n") == 100
        growing.flush()  # nothing new
        assert len(bucket.written) == 2
        clock[0] += paths.PERIOD
        growing.write(b"later\n")
        assert paths.read_whole(file).endswith(b"later\n")
        growing.write(b"last\n")
    assert paths.read_whole(file).endswith(b"later\nlast\n")
    assert not growing.local.exists()
    with paths.Growing(file) as growing:
        growing.write(b"resumed\n")
    assert paths.read_whole(file).startswith(b"0\n1\n")
    assert paths.read_whole(file).endswith(b"last\nresumed\n")


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
@pytest.mark.parametrize(
    "lines",
    [
        "paths.write_whole(path, b'new')",
        "with paths.writing_output(path) as file: file.write(b'new')",
    ],
)
def test_what_the_output_of_the_program_goes_to_is_added_to(tmp_path, name, lines):
    file = tmp_path / "all.csv"
    file.write_text("old ")
    code = f"from pathlib import Path; from jaxmatch.runtime import paths; path = Path({name!r})"
    checks = "paths.check_output(path); paths.check_replaces(path, (b'path',), 'x')"
    with file.open("a") as opened:
        program = f"{code}\n{checks}\n{lines}"
        subprocess.run([sys.executable, "-c", program], stdout=opened, check=True)
    assert file.read_text() == "old new"
