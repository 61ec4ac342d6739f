"""Parser of arguments whose errors are one line that names the mistake and its cure."""

import argparse
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from wan.program import install_command, keep_streams_open, print_error, shell_word
from wan.typed import NO, YES, nearest, path, text
from wan.values import quoted

# Names of other programs -> ours.
SYNONYMS = {
    **dict.fromkeys(("p", "text"), "prompt"),
    **dict.fromkeys(("i", "img", "input", "input_image", "first_frame", "init_image"), "image"),
    **dict.fromkeys(("last_frame", "end_image", "tail_image"), "last_image"),
    **dict.fromkeys(("o", "out", "output", "output_file", "outfile", "filename"), "save_file"),
    **dict.fromkeys(("outdir", "out_dir", "save_dir", "output_path"), "output_dir"),
    **dict.fromkeys(("model", "model_path", "checkpoint", "ckpt", "ckpt_path", "checkpoint_dir"), "ckpt_dir"),
    **dict.fromkeys(("width", "height", "resolution", "w"), "size"),
    **dict.fromkeys(("frames", "num_frames", "length", "video_length", "duration"), "frame_num"),
    **dict.fromkeys(("num_inference_steps", "infer_steps", "n_steps"), "sample_steps"),
    **dict.fromkeys(("cfg", "cfg_scale", "guidance", "guidance_scale", "guide_scale"), "sample_guide_scale"),
    **dict.fromkeys(("flow_shift", "shift"), "sample_shift"),
    **dict.fromkeys(("sampler", "scheduler"), "sample_solver"),
    **dict.fromkeys(("gpu", "cuda", "device_id"), "device"),
    **dict.fromkeys(("precision", "bf16", "fp32"), "dtype"),
    **dict.fromkeys(("negative", "neg_prompt", "n_prompt"), "negative_prompt"),
    **dict.fromkeys(("n", "num", "batch_size"), "num_videos"),
    **dict.fromkeys(("cpu_offload", "offload_policy", "block_swap"), "offload"),
    "ring_size": "ulysses_size",
}
LONG_DASHES = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\uff0d"
EXTRAS = {
    "tomli": "train",
    "modelscope_hub": "modelscope",
    "diffusers": "dev",
    "transformers": "s2v",
    "accelerate": "dev",
}  # of pyproject.toml
Flags = dict[str, argparse.Action]
CONTINUATIONS = ("\\", "^", "`")
TYPOGRAPHIC_QUOTES = "\u201c\u201d\u201e\u2018\u2019\u00ab\u00bb"


class Parser(argparse.ArgumentParser):
    """Parser whose errors are one line with exit code 2; --help has the list of flags."""

    typed: Sequence[str] = ()

    def __init__(self, **options: Any):
        super().__init__(allow_abbrev=False, **options)

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> argparse.Namespace:
        """Parse as argparse does; `typed` of the result counts how often each flag was given."""
        self.typed = sys.argv[1:] if args is None else list(args)
        if "-help" in self.typed:
            self.error("unrecognized arguments: -help; did you mean --help?")
        found, unknown = self.parse_known_args(self.typed, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        found.typed = Counter(word.partition("=")[0] for word in self.typed if _is_flag(word))
        return found

    def error(self, message: str) -> NoReturn:
        print_error(f"error: {mistake(self.typed, self._actions) or message} (see --help)", self.prog)
        raise SystemExit(2)


def exit_code(main: Callable[[], int | None], program: str | None = None) -> int:
    """Run a program; return its exit code: 2 and one line for mistakes of the user, 130 for Ctrl-C.

    Messages begin with the name of the `program`, if it is not the one that runs.
    """
    keep_streams_open()
    try:
        return main() or 0
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        print_error(f"error: the package {package} is not installed; {install_command(EXTRAS[package])}", program)
    except OSError as error:
        is_named = error.filename and error.strerror
        print_error(f"error: {error.filename}: {error.strerror}" if is_named else f"error: {error}", program)
    except ValueError as error:
        print_error(f"error: {error}", program)
    except FloatingPointError as error:
        print_error(f"failed: {error}", program)
        return 1
    except KeyboardInterrupt:
        print_error("interrupted", program)
        return 130
    return 2


def mistake(typed: Sequence[str], actions: Sequence[argparse.Action]) -> str | None:
    """Describe the first part of a command line that cannot be read; None when the fault is in a value."""
    flags = {option: action for action in actions for option in action.option_strings}
    free = sum(1 for action in actions if not action.option_strings)  # arguments that no flag announces
    name, action, room = "", None, free
    values: list[str] = []
    for index, word in enumerate(typed):
        if word[:1] in tuple(LONG_DASHES) and (near := _nearest_flag(word.partition("=")[0], flags)):
            return f"{quoted(word)} begins with a dash that is no hyphen; type {near}"
        if not _is_flag(word):
            if room < 1:
                return _stray(name, action, values, _values(typed[index:]), flags)
            room -= 1
            values.append(word)
            continue
        name, equals, value = word.partition("=")
        action, values = flags.get(name), [value] if equals else []
        if action is None:
            return _unknown(word, _values(typed[index + 1 :]), flags)
        if equals and action.nargs == 0:
            return _takes_no_value(name, value)
        room = {None: 1, "?": 1, 0: 0}.get(action.nargs, len(typed)) - bool(equals)
        if action.nargs in (None, "+") and not equals and not _values(typed[index + 1 :]):
            return _needs_a_value(name, typed[index + 1 :], flags)
    return None


def _unknown(word: str, values: Sequence[str], flags: Flags) -> str:
    near = _nearest_flag(word.partition("=")[0], flags)
    hint = f"; did you mean {near}?" if near else ""
    return f"unrecognized arguments: {' '.join([word, *values])}{hint}"


def _needs_a_value(name: str, after: Sequence[str], flags: Flags) -> str:
    if not after or after[0].partition("=")[0] in flags:
        return f"{name} needs a value" + (f", and {after[0]} follows" if after else "")
    joined = f"{name}={shell_word(after[0])}"
    return f"{name} needs a value, and {after[0]} looks like a flag; a value that begins with - is written {joined}"


def _takes_no_value(name: str, value: str) -> str:
    wrong = f"{name} {value}" if value.lower() in NO else quoted(value)
    return f"{name} takes no value: given, it is on; leave out {wrong}"


def _stray(name: str, action: argparse.Action | None, values: Sequence[str], more: Sequence[str], flags: Flags) -> str:
    """Describe words that belong to no flag, after `name` and its `values`."""
    word, phrase = more[0], " ".join([*values, *more])
    if word.isspace() or word in CONTINUATIONS:
        return f"a lone {word!r} is no argument; the sign that continues a line must be the last character of it"
    if not word:
        return "an argument is empty; a shell variable that is not set, in quotes, looks like this"
    if action is None:
        return _no_flag(word, phrase, flags)
    if action.nargs == 0:
        return _takes_no_value(name, word) if word.lower() in YES + NO else _no_flag(word, " ".join(more), flags, name)
    if phrase[0] in "'" + TYPOGRAPHIC_QUOTES:
        bare = phrase.strip("'" + TYPOGRAPHIC_QUOTES)
        return f'{phrase[0]} does not hold words together in this shell; write {name} "{bare}"'
    if action.type in (text, path):
        return f"{name} got only {quoted(values[0])}: more than one word is put in quotes, {name} {_in_quotes(phrase)}"
    for joint in ("*", ",", ""):
        try:
            action.type(joined := joint.join([*values, *more]))
        except (ValueError, TypeError, argparse.ArgumentTypeError):
            continue
        return f"{name} takes one value, without spaces: {name} {joined}"
    return f"unrecognized arguments: {' '.join(more)}; {name} takes one value"


def _no_flag(word: str, phrase: str, flags: Flags, after: str = "") -> str:
    if "--prompt" not in flags:
        return f"unrecognized arguments: {phrase}"
    place = f"{after} takes no value, and no flag" if after else "no flag"
    return f"{place} stands before {quoted(word)}; a prompt is given as --prompt {_in_quotes(phrase)}"


def _nearest_flag(word: str, flags: Flags) -> str | None:
    plain = word.lstrip("-" + LONG_DASHES)
    meant = f"--{SYNONYMS.get(plain.lower().replace('-', '_'))}"
    return meant if meant in flags else nearest(plain, (flag for flag in flags if flag.startswith("--")))


def _values(words: Sequence[str]) -> list[str]:
    """List the words up to the next flag."""
    end = next((index for index, word in enumerate(words) if _is_flag(word)), len(words))
    return list(words[:end])


def _is_flag(word: str) -> bool:
    """Tell whether argparse reads a word as a flag: not numbers below zero, nor text with spaces."""
    return word[:1] == "-" != word and " " not in word.partition("=")[0] and not re.fullmatch(r"-\d+|-\d*\.\d+", word)


def _in_quotes(phrase: str) -> str:
    return shell_word(phrase) if '"' in phrase else f'"{phrase}"'
