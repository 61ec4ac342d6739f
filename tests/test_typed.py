"""Values of flags: those that are read, and the suggestions for those that are refused."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest

from wan import typed
from wan.arguments import build_parser

ROOT = Path(__file__).parents[1]
PATHS = ["ckpt_dir", "image", "last_image", "from_video", "save_file", "output_dir", "resume", "audio", "pose_video"]
SHOW = (
    "import sys, os; sys.path.insert(0, sys.argv.pop()); from wan.typed import text, path; "
    "print(ascii(text(sys.argv[1])), os.fsencode(path(sys.argv[2])))"
)


def under(locale, *arguments):
    """Let a process of that locale read a text and a path; return its stdout and the last line of its stderr."""
    env = {"PATH": os.defpath, **locale}
    done = subprocess.run([sys.executable, "-c", SHOW, *arguments, str(ROOT)], env=env, capture_output=True, text=True)
    return done.stdout.strip(), done.stderr.strip().rpartition("\n")[2]


LOCALES = [
    {"LC_ALL": "C"},
    {"LC_ALL": "C.UTF-8"},
    {"LANG": "POSIX"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},  # bytes beyond ASCII are surrogates, as under GBK
]


@pytest.mark.parametrize("locale", LOCALES, ids=str)
def test_text_is_utf8_whatever_the_locale_and_paths_keep_their_bytes(locale):
    assert under(locale, "\u7ea2 caf\u00e9".encode(), b"\xba\xec.png") == (r"'\u7ea2 caf\xe9' b'\xba\xec.png'", "")
    out, error = under(locale, b"\xba\xec", b"x")
    assert out == "" and "the text is not UTF-8, perhaps GBK or Latin-1: '\\udcba\\udcec'; convert it to UTF-8" in error


def test_text_of_a_program_is_taken_as_it_is():
    assert typed.text("\u7ea2 \U0001f600") == "\u7ea2 \U0001f600"


@pytest.mark.parametrize("flag", [*PATHS, "tts_prompt_audio", "src_root_path"])
@pytest.mark.parametrize("value", ["", " "])
def test_no_path_is_empty(flag, value, capsys):
    with pytest.raises(SystemExit):
        build_parser().parse_args([f"--{flag}", value])
    assert f"argument --{flag}: the path is empty; a shell variable that is not set" in capsys.readouterr().err


def test_home_folders(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    assert (typed.path("~/x/"), typed.path("a~b"), typed.path("./~nobody/x")) == (
        "/somewhere/x/",
        "a~b",
        "./~nobody/x",
    )
    with pytest.raises(
        argparse.ArgumentTypeError, match="'~nobody-of-that-name/x' names the home folder of an unknown user"
    ):
        typed.path("~nobody-of-that-name/x")


@pytest.mark.parametrize(
    ("read", "value", "text"),
    [
        (typed.whole, "81.0", "a whole number was expected, got '81.0'; try 81"),
        (typed.whole, "1e3", "a whole number was expected, got '1e3'; try 1000"),
        (typed.whole, "16.6", "a whole number was expected, got '16.6'; try 17"),
        (typed.whole, "nan", "a whole number was expected, got 'nan'"),
        (typed.whole, "inf", "a whole number was expected, got 'inf'"),
        (typed.whole, "random", "a whole number was expected, got 'random'"),
        (typed.whole, "", "a whole number was expected, got ''"),
        (typed.number, "3,5", "a number was expected, got '3,5'; try 3.5"),
        (typed.number, "high", "a number was expected, got 'high'"),
        (typed.str2bool, "\x1b[31m", r"a yes or no was expected \(true, false, yes, no, 1, 0\), got '\\x1b\[31m'"),
        (
            typed.one_of(["a", "b"]),
            "c" * 900,
            r"invalid choice: 'c{59}\.\.\. \(902 characters\) \(choose from a, b\)",
        ),
    ],
)
def test_refusals(read, value, text):
    with pytest.raises(argparse.ArgumentTypeError, match=f"^{text}$"):
        read(value)


def test_numbers():
    assert (typed.whole("-1"), typed.whole("81"), typed.number("1e-3"), typed.number("5")) == (-1, 81, 1e-3, 5.0)
    with pytest.raises(argparse.ArgumentTypeError, match=r"got '9{59}\.\.\. \(5002 characters\)$"):
        typed.whole("9" * 5000)


@pytest.mark.parametrize(
    ("flag", "value", "hint"),
    [
        ("--size", "1280,720", "for example 1280*720, got '1280,720'; try 1280*720"),
        ("--size", "1280 720", "got '1280 720'; try 1280*720"),
        ("--size", "720p", "for example 1280*720, got '720p' "),
        ("--sample_guide_scale", "3.0 4.0", "got '3.0 4.0'; try 3.0,4.0"),
        ("--sample_guide_scale", "(3,4)", "got '(3,4)'; try 3,4"),
        ("--device", "", "the name of the device is empty; leave the flag out"),
    ],
)
def test_values_of_several_parts(flag, value, hint, capsys):
    with pytest.raises(SystemExit):
        build_parser().parse_args([flag, value])
    assert hint in capsys.readouterr().err
