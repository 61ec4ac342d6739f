"""A text becomes speech by what is installed, once, or the error says what to install."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from tests.test_audio import write_sound
from wan import tts
from wan.inputs import Sound
from wan.tts import Spoken, find_engine, speak
from wan.values import named


@pytest.fixture
def espeak(tmp_path, monkeypatch):
    """Put a program `espeak-ng` first that notes how it was called, and writes 0.1 s of sound."""
    write_sound(tmp_path / "made.wav", seconds=0.1)
    program = tmp_path / "bin" / "espeak-ng"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\ncat > {tmp_path}/said\ncp {tmp_path}/made.wav "$6"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    monkeypatch.setitem(sys.modules, "cosyvoice", None)
    hide(monkeypatch)
    return program


def hide(monkeypatch):
    monkeypatch.setattr(tts, "find_spec", lambda name: None)


@pytest.fixture
def cosyvoice(tmp_path, monkeypatch):
    """Install a CosyVoice that notes how it was called, and says two chunks at 24 kHz."""
    calls = []

    class Speaker:
        sample_rate = 24_000

        def __init__(self, folder):
            calls.append(("model", folder))

        def inference_zero_shot(self, *arguments):
            calls.append(("zero_shot", *arguments))
            return iter([{"tts_speech": torch.full((1, 1200), 0.25)}, {"tts_speech": torch.full((1, 1200), -0.5)}])

        def inference_cross_lingual(self, *arguments):
            calls.append(("cross_lingual", *arguments))
            return iter([{"tts_speech": torch.full((1, 2400), 0.25)}])

    module = ModuleType("cosyvoice.cli.cosyvoice")
    module.CosyVoice2 = Speaker
    for name in ("cosyvoice", "cosyvoice.cli"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(tts, "find_spec", lambda name: object())
    (tmp_path / "model").mkdir()
    return SimpleNamespace(calls=calls, folder=tmp_path / "model")


def test_espeak_speaks_the_text_as_it_is(tmp_path, espeak):
    words = "-w /etc/passwd; $(touch x) 'quoted'"
    file = speak(Spoken(words), tmp_path / "out" / "speech.wav")
    assert file == tmp_path / "out" / "speech.wav" and Sound.of(file).samples == 1600
    assert (tmp_path / "said").read_text() == words
    assert "passwd" not in (tmp_path / "calls").read_text()
    assert [path.name for path in file.parent.iterdir()] == ["speech.wav"]
    speak(Spoken("again"), file)
    assert (tmp_path / "said").read_text() == "again", "an older file is replaced"


@pytest.mark.parametrize(
    ("words", "voice"), [("hello", "en"), ("你好", "cmn"), ("こんにちは世界", "ja"), ("안녕", "ko"), ("да", "ru")]
)
def test_espeak_has_a_voice_for_the_script(tmp_path, espeak, words, voice):
    speak(Spoken(words), tmp_path / "a.wav")
    assert f"-v {voice} " in (tmp_path / "calls").read_text()


def test_espeak_says_that_it_clones_no_voice(tmp_path, espeak, caplog):
    speak(Spoken("hello", prompt_audio="me.wav"), tmp_path / "a.wav")
    assert "espeak-ng has a voice of its own; CosyVoice would speak like me.wav" in caplog.text


@pytest.mark.parametrize(
    ("script", "reason"), [("echo 'no voice' >&2; exit 1", "no voice"), ("cat > /dev/null", "said")]
)
def test_a_program_that_fails_leaves_no_file(tmp_path, espeak, script, reason):
    espeak.write_text(f"#!/bin/sh\n{script}\n")
    with pytest.raises(ValueError, match=f"espeak-ng .*{reason}"):
        speak(Spoken("hello"), tmp_path / "a.wav")
    assert not (tmp_path / "a.wav").exists()


def test_cosyvoice_speaks_like_the_sample(tmp_path, cosyvoice):
    sample = str(write_sound(tmp_path / "me.wav", rate=44100, seconds=6))
    file = speak(Spoken("hello", sample, "my words"), tmp_path / "a.wav", cosyvoice.folder)
    (_, folder), (mode, text, words, voice) = cosyvoice.calls
    assert (folder, mode, text, words) == (str(cosyvoice.folder), "zero_shot", "hello", "my words")
    assert voice.shape == (1, 96_000) and torch.equal(voice[0], Sound.of(sample).waveform)
    waveform = Sound.of(file).waveform
    assert len(waveform) == 1600 and waveform[400] == pytest.approx(0.25, abs=1e-3)
    assert waveform[1200] == pytest.approx(-0.5, abs=1e-3)
    speak(Spoken("hello", sample), tmp_path / "a.wav", cosyvoice.folder)
    assert cosyvoice.calls[-1][:2] == ("cross_lingual", "hello")


def test_samples_that_cosyvoice_cannot_use(tmp_path, cosyvoice, caplog):
    with pytest.raises(ValueError, match="needs a sample of the voice; give tts_prompt_audio"):
        speak(Spoken("hello"), tmp_path / "a.wav", cosyvoice.folder)
    with pytest.raises(ValueError, match=r"long\.wav has 31 s, and at most 30 are taken; cut it"):
        speak(Spoken("hello", write_sound(tmp_path / "long.wav", seconds=31)), tmp_path / "a.wav", cosyvoice.folder)
    with pytest.raises(FileNotFoundError, match=r"none\.wav"):
        speak(Spoken("hello", "none.wav"), tmp_path / "a.wav", cosyvoice.folder)
    speak(Spoken("hello", write_sound(tmp_path / "short.wav", seconds=1)), tmp_path / "a.wav", cosyvoice.folder)
    assert "samples of 5 to 15 s are best" in caplog.text
    with pytest.raises(ValueError, match=r"its model is not in .*nowhere: hf download FunAudioLLM/CosyVoice2-0.5B"):
        find_engine(tmp_path / "nowhere")


def test_without_any_the_error_says_what_to_install(tmp_path, monkeypatch):
    hide(monkeypatch)
    monkeypatch.setenv("PATH", str(tmp_path))
    with named({"enable_tts": "--enable_tts", "audio": "--audio"}), pytest.raises(ValueError) as error:
        speak(Spoken("hello"), tmp_path / "a.wav")
    assert "--enable_tts needs a program that speaks: install espeak-ng" in str(error.value)
    assert "CosyVoice" in str(error.value) and "give the file as --audio" in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", ["", "  \n", None])
def test_there_must_be_a_text(words):
    with pytest.raises(ValueError, match="enable_tts needs tts_text, what is to be said"):
        Spoken(words)


def test_of_several_processes_the_first_speaks(tmp_path, espeak, monkeypatch):
    sent = []
    monkeypatch.setattr(tts, "broadcast_text", lambda name, device: sent.append(name) or str(tmp_path / "a.wav"))
    for rank in range(3):
        monkeypatch.setattr(tts, "get_rank", lambda rank=rank: rank)
        assert speak(Spoken("hello"), tmp_path / "a.wav") == tmp_path / "a.wav"
    assert len(sent) == 3, "all meet, after the first one has spoken"
    assert len((tmp_path / "calls").read_text().splitlines()) == 1
