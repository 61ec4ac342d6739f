"""Damage files of any kind: change bytes, put other files in their place, or things that are no files."""

import gzip
import os
import socket
from collections.abc import Callable
from pathlib import Path
from random import Random

PORT = 9  # "discard": nobody listens; whoever connects is seen by the audit hook or by the canary
INTEGERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**63, 2**64 - 1)


def flip(rng: Random, data: bytes) -> bytes:
    """Change one to eight bytes, more often in the first 200, where headers are."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        if out:
            end = min(len(out), 200) if rng.random() < 0.5 else len(out)
            out[rng.randrange(end)] = rng.randrange(256)
    return bytes(out)


def cut(rng: Random, data: bytes) -> bytes:
    """Keep the beginning, or all but a few bytes of the end, or all but some of the middle."""
    if not data:
        return data
    at = rng.choice((rng.randrange(len(data)), max(0, len(data) - rng.randrange(1, 64)), rng.randrange(64)))
    return data[:at] + (data[at + rng.randrange(1, 200) :] if rng.random() < 0.3 else b"")


def extend(rng: Random, data: bytes) -> bytes:
    more = rng.choice((b"\0", b"\0" * 8, rng.randbytes(100), data, b"\n" * 4096))
    return more + data if rng.random() < 0.3 else data + more


def zero(rng: Random, data: bytes) -> bytes:
    """Fill a range with zeros or ones, as in a download with holes."""
    start, value = rng.randrange(max(1, len(data))), rng.choice((b"\0", b"\xff"))
    size = min(len(data) - start, rng.choice((1, 8, 64, 512, 4096, len(data))))
    return data[:start] + value * size + data[start + size :]


def shuffle(rng: Random, data: bytes) -> bytes:
    """Copy a range over another, or insert it."""
    source, target = rng.randrange(max(1, len(data))), rng.randrange(max(1, len(data)))
    piece = data[source : source + rng.choice((4, 32, 500))]
    return data[:target] + piece + data[target + (len(piece) if rng.random() < 0.7 else 0) :]


def integer(rng: Random, data: bytes) -> bytes:
    """Give a number of 1 to 8 bytes an extreme value, in either order of bytes."""
    size = rng.choice((1, 2, 4, 8))
    if len(data) < size:
        return data
    at = rng.randrange(min(len(data) - size, 300) + 1) if rng.random() < 0.7 else rng.randrange(len(data) - size + 1)
    value = rng.choice(INTEGERS) % 256**size
    return data[:at] + value.to_bytes(size, rng.choice(("little", "big"))) + data[at + size :]


BYTEWISE: tuple[Callable[[Random, bytes], bytes], ...] = (flip, cut, extend, zero, shuffle, integer)


def bytewise(rng: Random, data: bytes) -> tuple[str, bytes]:
    """Damage the data once or twice; return it with the names of the damages."""
    names = []
    for _ in range(rng.choice((1, 1, 2))):
        change = rng.choice(BYTEWISE)
        names.append(change.__name__)
        data = change(rng, data)
    return " ".join(names), data


GZIP = gzip.compress(b"\0" * 10_000_000)


def foreign(canary: Path) -> dict[str, bytes]:
    """Make files of other kinds. Some name the canary, a program or an address, which must not be opened."""
    url = f"http://127.0.0.1:{PORT}/x"
    return {
        "empty": b"",
        "one byte": b"\n",
        "text": b"hello\n",
        "lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n",
        "web page": b"<!DOCTYPE html><html><head><title>404</title></head></html>",
        "xml error": b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
        "json null": b"null",
        "json list": b"[]",
        "nested json": b"[" * 200_000,
        "nested objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        "zip end": b"PK\x05\x06" + b"\0" * 18,
        "gguf": b"GGUF\x03\0\0\0" + b"\xff" * 16,
        "gzip of zeros": GZIP,
        "shell script": f"#!/bin/sh\ntouch {canary}.ran\n".encode(),
        "pickle that opens a file": f"cbuiltins\nopen\n(V{canary}.ran\nVw\ntR.".encode(),
        "pickle protocol 2": b"\x80\x02cposix\nsystem\n" + f"(X\x0a\0\0\0touch /tmp{canary}tR.".encode(),
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n%%EOF\n",
        "pdf": b"%PDF-1.4\n1 0 obj<</Type/Catalog>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF\n",
        "svg": f'<svg xmlns="http://www.w3.org/2000/svg"><image href="{url}"/></svg>'.encode(),
        "playlist": f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{url}.ts\n#EXT-X-ENDLIST\n".encode(),
        "playlist of a file": f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{canary}\n#EXT-X-ENDLIST\n".encode(),
        "ffconcat": f"ffconcat version 1.0\nfile '{canary}'\n".encode(),
        "sdp": b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\n",
        "dash": f"<MPD><Period><BaseURL>{url}</BaseURL></Period></MPD>".encode(),
        "noise": Random(0).randbytes(5000),
        "zeros": b"\0" * 5000,
    }


NO_FILES = (
    "folder",
    "fifo",
    "socket",
    "loop",
    "dangling link",
    "/dev/zero",
    "/dev/null",
    "/dev/random",
    "/proc/self/mem",
)


def put_no_file(path: Path, what: str) -> None:
    """Put something under a name that cannot be read as a file."""
    path.unlink(missing_ok=True)
    if what == "folder":
        path.mkdir()
    elif what == "fifo":
        os.mkfifo(path)
    elif what == "socket":
        here = os.getcwd()
        os.chdir(path.parent)  # names of sockets are short
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
        os.chdir(here)
    elif what == "loop":
        path.symlink_to(path.name)
    else:
        path.symlink_to("nowhere" if what == "dangling link" else what)
