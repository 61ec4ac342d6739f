"""Every pair of flags of a run: planned with both in effect or a remark, or refused with what works instead."""

import itertools
import re

import pytest
import torch

from tests.performances import write_performance
from wan import output, planning, runtime
from wan.arguments import parse
from wan.cards import CARDS
from wan.clips import SampledClip
from wan.jobs import stored_request
from wan.nano.random import write_random_checkpoint
from wan.planner import Room
from wan.planning import plan
from wan.runtime import CPU, Offload

# Flags, and what shows in a job that they are in effect.
FLAGS = {
    "--offload none": lambda job: job.runtime.offload is Offload.NONE,
    "--offload model": lambda job: job.runtime.offload is Offload.MODEL,
    "--offload block": lambda job: job.runtime.offload is Offload.BLOCK,
    "--offload auto": lambda job: job.runtime.offload is not Offload.AUTO,
    "--offload_model true": lambda job: job.runtime.offload is Offload.MODEL,
    "--quantize int8": lambda job: job.runtime.quantize == "int8",
    "--quantize fp8": lambda job: job.runtime.quantize == "fp8",
    "--block_cache 0.1": lambda job: job.request.reuse == 0.1,
    "--cfg_until 0.5": lambda job: job.request.guidance_until == 0.5,
    "--preset 4-step": lambda job: job.request.sigmas,
    "--compile": lambda job: job.runtime.compile is True,
    "--compile false": lambda job: job.runtime.compile is False,
    "--dit_fsdp": lambda job: job.runtime.parallel.dit_fsdp,
    "--t5_fsdp": lambda job: job.runtime.parallel.t5_fsdp,
    "--ulysses_size 2": lambda job: job.runtime.parallel.ulysses_size == 2,
    "--cfg_parallel": lambda job: job.runtime.parallel.cfg_size == 2,
    "--vae_dtype fp16": lambda job: job.runtime.vae_dtype == torch.float16,
    "--vae_frames 1": lambda job: job.runtime.vae_frames == 1,
    "--vae_tile 64": lambda job: job.runtime.vae_tile == 64,
    "--t5_cpu": lambda job: job.runtime.t5_device == CPU,
    "--convert_model_dtype": lambda job: job.runtime.convert_model_dtype,
    "--dtype fp32": lambda job: job.runtime.dtype == torch.float32,
    "--use_relighting_lora": lambda job: job.config.uses_lora,
    "--resume": lambda job: job.latent is not None,
}
# Beginnings of flags that cannot work together, and what the error says.
REFUSED = [
    (
        ("--offload none", "--offload block", "--offload auto", "--offload_model"),
        r"--offload_model True is --offload model, got --offload \w+ as well; drop one",
    ),
    *(
        ((flag, "--dit_fsdp"), "leave --dit_fsdp out, --offload model and --ulysses_size work together")
        for flag in ("--offload model", "--offload_model")
    ),
    *(
        (("--offload block", flag), "leave it out, --offload block and --ulysses_size work together")
        for flag in ("--dit_fsdp", "--t5_fsdp")
    ),
    (
        ("--quantize", "--dit_fsdp"),
        "leave --dit_fsdp out: --quantize works with --ulysses_size and with --offload block",
    ),
    (("--block_cache", "--cfg_parallel"), "use --ulysses_size 2 in place of --cfg_parallel"),
    (("--convert_model_dtype", "--dtype"), "contradicts --dtype fp32; drop one"),
    (("--t5_cpu", "--t5_fsdp"), "--t5_cpu and --t5_fsdp are two ways to make room for the text encoder; drop one"),
    *(
        ((flag, "--resume"), f"--resume only decodes what was sampled already; {flag} cannot change it")
        for flag in ("--block_cache", "--cfg_until", "--preset", "--use_relighting_lora")
    ),
]
SEVERAL = {"--dit_fsdp", "--t5_fsdp", "--ulysses_size 2", "--cfg_parallel"}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Flags that name the inputs of each task."""
    folder = tmp_path_factory.mktemp("places")
    checkpoints = {task: write_random_checkpoint(folder / task, task) for task in ("t2v-A14B", "animate-14B")}
    return folder, {
        "t2v-A14B": ["--ckpt_dir", checkpoints["t2v-A14B"], "--prompt", "a cat", "--size", "64*64", "--frame_num", "5"],
        "animate-14B": ["--ckpt_dir", checkpoints["animate-14B"], "--src_root_path", write_performance(folder / "act")],
    }


@pytest.fixture
def planned(places, monkeypatch, tmp_path):
    """Plan a run with some flags for a pretended GPU of each process, without the checks of files."""
    inputs = places[1]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runtime, "resolve_device", lambda name: torch.device("cuda:0"))
    monkeypatch.setattr(planning, "check_backend", lambda *given: None)
    monkeypatch.setattr(planning, "check_checkpoint", lambda *given: None)
    monkeypatch.setattr(planning, "fingerprint", lambda *given: "0" * 16)
    monkeypatch.setattr(planning, "room_of", lambda _: Room(80 * 10**9, 256 << 30, CARDS["H100"], "H100", True))
    for name in ("MASTER_ADDR", "MASTER_PORT", "RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")

    def planned(*flags):
        several = len(SEVERAL.intersection(flags) - {"--dit_fsdp", "--t5_fsdp"})
        monkeypatch.setenv("WORLD_SIZE", str(1 if SEVERAL.isdisjoint(flags) else 4 if several == 2 else 2))
        task = "animate-14B" if "--use_relighting_lora" in flags else "t2v-A14B"
        words = ["--task", task, *inputs[task]]
        if "--resume" in flags:
            job = plan(parse(list(map(str, words))))
            clips = [SampledClip(torch.zeros(shape)) for shape in job.clip_shapes]
            latent = output.keep_clips(clips, job.video, stored_request(job), len(clips))
            words = ["--resume", latent, "--ckpt_dir", inputs[task][1]]
        words += [word for flag in flags if flag != "--resume" for word in flag.split()]
        return plan(parse(list(map(str, words))))

    return planned


PAIRS = [pair for pair in itertools.combinations(FLAGS, 2) if pair[0].split()[0] != pair[1].split()[0]]


@pytest.mark.parametrize("pair", PAIRS, ids=" ".join)
def test_every_pair(planned, caplog, pair):
    rule = next((text for starts, text in REFUSED if all(flag.startswith(starts) for flag in pair)), None)
    try:
        job = planned(*pair)
    except ValueError as error:
        assert rule and re.search(rule, str(error)), error
        return
    assert rule is None, "it is planned"
    for flag in pair:
        assert FLAGS[flag](job) or re.search(rf"{flag.split()[0]}\b.* no effect", caplog.text), flag
