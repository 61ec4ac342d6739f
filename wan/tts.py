"""Speech from a text: CosyVoice where it is installed, else the program espeak-ng. Nothing is fetched at run time."""

from __future__ import annotations

import logging
import shutil
import subprocess
import wave
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from wan.distributed.util import broadcast_text, get_rank
from wan.files import atomic_file, shown
from wan.inputs import Sound
from wan.values import called, text

log = logging.getLogger(__name__)

COSYVOICE = "CosyVoice2-0.5B"  # the folder of its model
DOWNLOAD = f"hf download FunAudioLLM/{COSYVOICE} --local-dir {COSYVOICE}"
LONGEST_SAMPLE = 30  # seconds that CosyVoice takes
GOOD_SAMPLE = (5, 15)
# Voices of espeak-ng by the letters of a text: the last of a range, and the voice for it. English is for all others.
SCRIPTS = ((0x0400, 0x052F, "ru"), (0x3040, 0x30FF, "ja"), (0xAC00, 0xD7A3, "ko"), (0x4E00, 0x9FFF, "cmn"))


@dataclass(frozen=True)
class Spoken:
    """Words to be said, and the voice: a sample of it, and the words in the sample if they are known.

    Fields have the names of flags without `tts_`. Raises ValueError for an empty text.
    """

    text: str
    prompt_audio: str | None = None
    prompt_text: str | None = None

    def __post_init__(self) -> None:
        if self.text is None or not text("tts_text", self.text).strip():
            raise ValueError(f"{called('enable_tts')} needs {called('tts_text')}, what is to be said")


Engine = Callable[[Spoken, Path], None]  # writes a wav file


def find_engine(model: str | Path = COSYVOICE) -> Engine:
    """Choose what speaks; `model` is the folder of CosyVoice. Raises ValueError that says what to install."""
    if find_spec("cosyvoice") is not None:
        if not Path(model).is_dir():
            raise ValueError(f"CosyVoice is installed, and its model is not in {shown(model)}: {DOWNLOAD}")
        return lambda spoken, file: _cosyvoice(spoken, file, Path(model))
    if shutil.which("espeak-ng"):
        return _espeak
    raise ValueError(
        f"{called('enable_tts')} needs a program that speaks: install espeak-ng (apt install espeak-ng); or, for the "
        "voice of a sample, CosyVoice (github.com/FunAudioLLM/CosyVoice, on PYTHONPATH) and its model "
        f"({DOWNLOAD}); or record the text, and give the file as {called('audio')}"
    )


def speak(spoken: Spoken, file: str | Path, model: str | Path = COSYVOICE, device: torch.device | str = "cpu") -> Path:
    """Write a wav file of a spoken text, which replaces an older one; returns its path.

    Of several processes the first one speaks; the others wait, which needs the `device` of the run. Raises ValueError
    that says what to do.
    """
    if get_rank() == 0:
        engine = find_engine(model)
        with atomic_file(file, overwrite=True) as partial:
            engine(spoken, partial)
    return Path(broadcast_text(str(file), device))


def _espeak(spoken: Spoken, file: Path) -> None:
    """Speak with the program espeak-ng, in a voice of its own. The text is its standard input: no text is an option."""
    if spoken.prompt_audio is not None:
        log.warning("espeak-ng has a voice of its own; CosyVoice would speak like %s", shown(spoken.prompt_audio))
    command = ["espeak-ng", "-b", "1", "-v", _voice(spoken.text), "-w", str(file), "--stdin"]
    done = subprocess.run(command, input=spoken.text.encode(), capture_output=True)
    if done.returncode:
        raise ValueError(f"espeak-ng failed: {shown(done.stderr.decode(errors='replace').strip()) or done.returncode}")
    if not file.stat().st_size:
        raise ValueError(f"espeak-ng said nothing for {called('tts_text')} {shown(spoken.text, 60)!r}; change the text")


def _voice(words: str) -> str:
    """Choose the voice for the first letter that is of a script with one; Japanese also has letters of Chinese."""
    found = {voice for letter in words for first, last, voice in SCRIPTS if first <= ord(letter) <= last}
    return next((voice for _, _, voice in SCRIPTS if voice in found), "en")


def _cosyvoice(spoken: Spoken, file: Path, model: Path) -> None:
    """Speak like the sample: with its words by zero-shot cloning, without them across languages."""
    from cosyvoice.cli.cosyvoice import CosyVoice2

    if spoken.prompt_audio is None:
        raise ValueError(f"CosyVoice needs a sample of the voice; give {called('tts_prompt_audio')}")
    sample = Sound.of(spoken.prompt_audio, "tts_prompt_audio")
    if sample.seconds > LONGEST_SAMPLE:
        raise ValueError(
            f"{shown(sample.path)} has {sample.seconds:g} s, and at most {LONGEST_SAMPLE} are taken; cut it"
        )
    if not GOOD_SAMPLE[0] <= sample.seconds <= GOOD_SAMPLE[1]:
        log.warning("%s has %s; samples of %d to %d s are best", shown(sample.path), sample, *GOOD_SAMPLE)
    speaker, voice = CosyVoice2(str(model)), sample.waveform[None]
    if spoken.prompt_text:
        chunks = speaker.inference_zero_shot(spoken.text, spoken.prompt_text, voice)
    else:
        chunks = speaker.inference_cross_lingual(spoken.text, voice)
    _write_wav(torch.cat([chunk["tts_speech"].cpu() for chunk in chunks], dim=1)[0], speaker.sample_rate, file)


def _write_wav(samples: Tensor, rate: int, file: Path) -> None:
    """Write samples [n] in [-1, 1] as 16-bit wav."""
    with open(file, "wb") as raw, wave.open(raw, "wb") as out:
        out.setparams((1, 2, rate, 0, "NONE", ""))
        out.writeframes((samples.clamp(-1, 1) * 32767).round().to(torch.int16).numpy().tobytes())
