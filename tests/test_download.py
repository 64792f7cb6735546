"""The downloader against a server on loopback that drops, ignores ranges, corrupts and refuses on demand."""

import dataclasses
import errno
import gzip
import hashlib
import io
import itertools
import socket
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from xai_lib import download
from xai_lib.download import Source, fetch, main

BODY = bytes(range(256)) * 1000  # what the sets hold: 256,000 bytes
HOME = "https://example.org/by-hand"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):  # noqa: N802 - the name http.server looks for
        server, wanted = self.server, self.headers.get("Range")
        server.asked.append((self.path, wanted))
        body = server.bodies.get(self.path)
        if body is None:
            return self.send_error(404)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and not server.ignores_range else 0
        if start and start >= len(body):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        end = start + (len(body) - start) // 2 if server.drops else len(body)
        server.drops = max(server.drops - 1, 0)
        return self.wfile.write(body[start:end])

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    one = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    one.bodies, one.asked, one.drops, one.ignores_range = {}, [], 0, False
    one.url = f"http://127.0.0.1:{one.server_port}/"
    thread = threading.Thread(target=one.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield one
    one.shutdown()
    thread.join()
    one.server_close()


def tar(members):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz", compresslevel=0) as archive:
        for name, body in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            archive.addfile(info, io.BytesIO(body))
    return stream.getvalue()


def as_zip(members):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, body in members.items():
            archive.writestr(name, body)
    return stream.getvalue()


def offer(server, file="set.tgz", body=None, mirrors=None, md5=None, **changes):
    """Serve an archive and return a source of it; its folder is ``set``, with one file ``a.bin``."""
    body = tar({"set/a.bin": BODY}) if body is None else body
    server.bodies[f"/{file}"] = body
    files, contents = {file: md5 or hashlib.md5(body).hexdigest()}, {"a.bin": hashlib.sha256(BODY).hexdigest()}
    one = Source("for tests only", HOME, mirrors or (server.url,), files, "set", contents)
    return {"one": dataclasses.replace(one, **changes)}


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    def one(sources, *argv, folder=tmp_path):
        monkeypatch.setattr(download, "SOURCES", sources)
        monkeypatch.setenv("XAI_DATA", str(folder))
        code = main(list(argv) or list(sources))
        out, err = capsys.readouterr()
        return code, out, err.splitlines()

    return one


@pytest.mark.parametrize("file", ["set.tgz", "set.tar.gz", "set.zip"])
def test_archive_becomes_its_folder_and_goes(server, tmp_path, capsys, file):
    members = {"set/a.bin": BODY, "set/deep/b.txt": b"b", "loose.txt": b""}
    sources = offer(server, file, as_zip(members) if file.endswith("zip") else tar(members))
    assert fetch("one", tmp_path / "data", sources) == tmp_path / "data" / "set"
    assert names(tmp_path) == ["data/set/a.bin", "data/set/deep/b.txt"]
    assert (tmp_path / "data/set/a.bin").read_bytes() == BODY
    assert server.asked == [(f"/{file}", None)]
    assert capsys.readouterr().out.startswith(f"one: for tests only; {HOME}\n")


def test_single_gz_files_are_decompressed_into_a_nested_folder(server, tmp_path):
    files = {"a.bin.gz": gzip.compress(BODY), "b.bin.gz": gzip.compress(b"b")}
    server.bodies |= {f"/{file}": body for file, body in files.items()}
    md5s = {file: hashlib.md5(body).hexdigest() for file, body in files.items()}
    fetch("one", tmp_path, offer(server, files=md5s, target="MNIST/raw"))
    assert names(tmp_path) == ["MNIST/raw/a.bin", "MNIST/raw/b.bin"]  # a.bin by its SHA-256


@pytest.mark.parametrize("contents", [{"*.bin": 2}, {"b.bin": ""}, {"a.bin": "0" * 64}])
def test_incomplete_folder_is_named_and_not_touched(server, tmp_path, contents):
    (tmp_path / "set").mkdir()
    (tmp_path / "set/a.bin").write_bytes(BODY)
    with pytest.raises(FileExistsError, match="move it away"):
        fetch("one", tmp_path, offer(server, contents=contents))
    assert (server.asked, names(tmp_path)) == ([], ["set/a.bin"])


def test_dropped_connections_are_resumed_where_they_broke(server, tmp_path):
    sources, server.drops = offer(server), 3
    size, ends = len(server.bodies["/set.tgz"]), [0]
    for _ in range(3):
        ends.append(ends[-1] + (size - ends[-1]) // 2)
    fetch("one", tmp_path, sources)
    assert [asked[1] for asked in server.asked] == [None, *(f"bytes={end}-" for end in ends[1:])]


def test_part_is_kept_and_the_next_run_asks_for_the_rest(server, tmp_path, run):
    sources, server.drops = offer(server), 4
    code, _, err = run(sources)
    assert (code, len(err), names(tmp_path)) == (1, 1, ["set.tgz.part"])
    assert all(words in err[0] for words in (f"{server.url}set.tgz", "run again to resume", HOME))
    kept = (tmp_path / "set.tgz.part").stat().st_size
    assert run(sources)[0] == 0
    assert server.asked[4:] == [("/set.tgz", f"bytes={kept}-")]


def test_server_without_ranges_starts_over(server, tmp_path):
    sources, server.ignores_range, server.drops = offer(server), True, 1
    fetch("one", tmp_path, sources)
    assert (len(server.asked), names(tmp_path)) == (2, ["set/a.bin"])


@pytest.mark.parametrize(("extra", "requests"), [(b"", 1), (b"too long", 2)])
def test_416_means_complete_or_start_over(server, tmp_path, extra, requests):
    sources = offer(server)
    (tmp_path / "set.tgz.part").write_bytes(server.bodies["/set.tgz"] + extra)
    fetch("one", tmp_path, sources)
    assert (len(server.asked), names(tmp_path)) == (requests, ["set/a.bin"])


def test_wrong_checksum_is_one_line_and_the_file_goes(server, tmp_path, run):
    code, _, err = run(offer(server, md5="0" * 32))
    found = hashlib.md5(server.bodies["/set.tgz"]).hexdigest()
    assert (code, len(err), names(tmp_path)) == (1, 1, [])
    assert f"set.tgz.part from {server.url}set.tgz: MD5 expected {'0' * 32}, found {found}" in err[0]


@pytest.mark.parametrize(
    ("bad", "reason"), [("gone/", "HTTP 404"), ("corrupt/", "MD5"), ("closed", "refused"), ("silent", "timed out")]
)
def test_bad_mirror_is_named_and_the_second_takes_over(server, tmp_path, monkeypatch, run, bad, reason):
    monkeypatch.setattr(download, "TIMEOUT", 0.3)
    server.bodies["/corrupt/set.tgz"] = b"x" * 1000
    with socket.create_server(("127.0.0.1", 0)) as silent:
        first = server.url + bad if bad.endswith("/") else f"http://127.0.0.1:{silent.getsockname()[1]}/"
        if bad == "closed":
            silent.close()
        code, _, err = run(offer(server, mirrors=(first, server.url)))
    assert (code, len(err), names(tmp_path)) == (0, 1, ["set/a.bin"])
    assert all(words in err[0] for words in (f"{first}set.tgz", reason, HOME, str(tmp_path)))


def test_when_all_mirrors_fail_the_other_sets_go_on(server, tmp_path, run):
    bad = offer(server, "gone.tgz", mirrors=(server.url, server.url + "x/"), target="gone")["one"]
    del server.bodies["/gone.tgz"]
    code, out, err = run({"bad": bad} | offer(server))
    assert (code, len(err), names(tmp_path)) == (1, 2, ["set/a.bin"])
    assert out.startswith("bad: for tests only")  # the licence comes first, whatever follows
    assert all("HTTP 404" in line and HOME in line for line in err)


@pytest.mark.parametrize(
    ("file", "body", "words"),
    [
        ("set.tgz", tar({"set/a.bin": BODY, "../../escaped.txt": b"!"}), "outside"),
        ("set.zip", as_zip({"set/a.bin": BODY, "../../escaped.txt": b"!"}), "outside"),
        ("set.tgz", tar({"set/other.bin": BODY}), "no a.bin"),
        ("set.tgz", tar({"set/a.bin": BODY})[:9000], "archive"),
        ("set.zip", b"no archive", "not a zip file"),
    ],
)
def test_unsafe_or_unusable_archive_leaves_no_folder(server, tmp_path, run, file, body, words):
    code, _, err = run(offer(server, file, body), folder=tmp_path / "data")
    assert (code, len(err), words in err[0]) == (1, 1, True)
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == ["data", f"data/{file}"]


def test_archive_got_by_hand_is_used_and_a_complete_set_is_left_alone(server, tmp_path, run):
    sources = offer(server)
    (tmp_path / "set.tgz").write_bytes(server.bodies["/set.tgz"])
    assert run(sources)[0] == 0
    assert run(sources) == (0, f"one: already complete in {tmp_path / 'set'}\n", [])
    assert (server.asked, names(tmp_path)) == ([], ["set/a.bin"])


def test_unknown_name_lists_the_known_before_any_request(server, tmp_path, run):
    code, _, err = run(offer(server), "one", "mnits")
    assert (code, len(err), server.asked, names(tmp_path)) == (2, 1, [], [])
    assert err[0].endswith("mnits; known: one")
    with pytest.raises(ValueError, match=r"'mnits'.*known: one"):
        fetch("mnits", tmp_path, download.SOURCES)


@pytest.mark.parametrize(
    ("error", "code", "words"), [(KeyboardInterrupt(), 130, "resume"), (OSError(errno.ENOSPC, "No"), 1, "disk is full")]
)
def test_ctrl_c_and_full_disk_keep_what_came(server, tmp_path, monkeypatch, run, error, code, words):
    sources, steps = offer(server), itertools.count()

    class Bar(download.tqdm):
        def update(self, size):
            if next(steps) == 1:
                raise error

    monkeypatch.setattr(download, "tqdm", Bar)
    got, _, err = run(sources)
    assert (got, len(err), words in err[0], names(tmp_path)) == (code, 1, True, ["set.tgz.part"])
    assert run(sources)[0] == 0
    assert server.asked[1] == ("/set.tgz", f"bytes={2 * download.BLOCK}-")


def test_known_sets_are_written_down_whole():
    assert set(download.DEFAULT) <= set(download.SOURCES)
    for source in download.SOURCES.values():
        assert all(len(md5) == 32 for md5 in source.files.values())
        assert all(isinstance(one, int) or len(one) == 64 for one in source.contents.values())
        assert all(url.endswith("/") for url in source.mirrors)
