"""Policies of memory through whole runs: every task makes the same video, bit for bit."""

import functools
import re
import wave
from dataclasses import replace

import pytest
import torch

from tests.distributed.launch import launch
from tests.late_copies import LateLane
from tests.performances import write_performance
from tests.runs import sample
from tests.test_experts import write_lora
from wan import cli
from wan.configs import NANO_CONFIGS
from wan.experts import load_expert
from wan.media import read_video
from wan.memory import Weights
from wan.nano.random import write_random_checkpoint
from wan.parallel import Parallel
from wan.planning import plan
from wan.request import Request
from wan.runtime import Host, Offload, Runtime
from wan.streaming import Lane, Streamed
from wan.text2video import WanT2V

CPU = torch.device("cpu")
CONFIG = NANO_CONFIGS["t2v-A14B"]

RUN = ["--device", "cpu", "--progress", "none", "--base_seed", "3", "--sample_steps", "2", "--prompt", "a red circle"]
TASKS = ["t2v-A14B", "i2v-A14B", "ti2v-5B", "s2v-14B", "animate-14B"]


@functools.cache
def checkpoint(folder, task):
    return write_random_checkpoint(folder / task, task)


@pytest.fixture
def lane(monkeypatch):
    """Lane that copies late. One slot makes even models of two blocks stream."""
    lane = LateLane(1)
    monkeypatch.setattr("wan.memory.make_lane", lambda device: lane)
    monkeypatch.setattr("wan.streaming.num_slots", lambda sizes: 1)
    return lane


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Flags of each task."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("inputs")
    Image.linear_gradient("L").convert("RGB").resize((64, 64)).save(folder / "a.png")
    with wave.open(str(folder / "a.wav"), "wb") as sound:
        sound.setparams((1, 2, 16000, 0, "NONE", ""))
        sound.writeframes((torch.sin(torch.arange(8000) / 9) * 9999).short().numpy().tobytes())
    image = ["--image", str(folder / "a.png")]
    return folder, {
        "t2v-A14B": ["--size", "64*64", "--frame_num", "5"],
        "i2v-A14B": ["--size", "64*64", "--frame_num", "5", *image],
        "ti2v-5B": ["--frame_num", "5", *image],
        "s2v-14B": ["--infer_frames", "8", "--num_clip", "1", *image, "--audio", str(folder / "a.wav")],
        "animate-14B": ["--src_root_path", str(write_performance(folder / "acts"))],
    }


def frames(folder, inputs, task, flags, *policy):
    video = folder / f"a{''.join(policy)}.mp4"
    flags = [*RUN, *flags, "--task", task, "--ckpt_dir", str(checkpoint(inputs, task)), *policy]
    assert cli.main([*flags, "--save_file", str(video)]) == 0
    return read_video(video)[0]


@pytest.mark.parametrize("task", TASKS)
def test_streamed_blocks_make_the_same_video(tmp_path, inputs, lane, task):
    make = functools.partial(frames, tmp_path, inputs[0], task, [*inputs[1][task], "--dtype", "fp32"])
    assert torch.equal(make("--offload", "block"), make()) and lane.sent


@pytest.mark.parametrize("task", TASKS)
def test_branches_that_go_together_make_the_same_video_from_half_the_copies(tmp_path, inputs, lane, monkeypatch, task):
    def plan_together(args):
        job = plan(args)
        return replace(job, runtime=replace(job.runtime, together=True))

    flags = [*inputs[1][task], "--dtype", "fp32", "--sample_guide_scale", "3", "--overwrite"]
    make = functools.partial(frames, tmp_path, inputs[0], task, flags, "--offload", "block")
    expected, copies = make(), len(lane.sent)
    monkeypatch.setattr("wan.cli.plan", plan_together)
    assert torch.equal(make(), expected)
    assert 0 < len(lane.sent) - copies <= 0.6 * copies


def test_every_policy_makes_the_same_video(tmp_path, inputs):
    make = functools.partial(frames, tmp_path, inputs[0], "t2v-A14B", inputs[1]["t2v-A14B"])
    expected = make()
    for policy in ("--offload none", "--offload model", "--offload block", "--offload auto", "--offload_model True"):
        assert torch.equal(make(*policy.split()), expected), policy


def latent(folder, **runtime):
    runtime = replace(Runtime.from_flags(device="cpu", offload="block"), **runtime)
    pipeline = WanT2V(CONFIG, folder, runtime=runtime)
    request = Request.create(CONFIG, prompt="a red circle", size=(32, 32), frame_num=5, steps=4, seed=1)
    return sample(pipeline, request), pipeline


@pytest.fixture(scope="module")
def mapped(tmp_path_factory):
    return write_random_checkpoint(tmp_path_factory.mktemp("mapped"))


@pytest.mark.parametrize("rounds", [False, True], ids=["kept float32", "all bf16"])
@pytest.mark.parametrize("host", Host)
def test_streams_from_mapped_files_and_with_one_expert_alive(mapped, lane, monkeypatch, host, rounds):
    """Files have float32, which is rounded where it goes to the device, or before that."""
    monkeypatch.setattr("wan.experts.can_pack", lambda *device: False)
    expected, _ = latent(mapped, offload=Offload.NONE, convert_model_dtype=rounds)
    found, pipeline = latent(mapped, host=host, convert_model_dtype=rounds)
    assert torch.equal(found, expected) and lane.sent
    alive = set(CONFIG.experts) & pipeline.weights._modules.keys()
    assert alive == (set() if host is Host.ONE else set(CONFIG.experts))
    for name in alive:
        stored = pipeline.weights.get(name).blocks[0].ffn[0].weight
        assert stored.dtype == (torch.float32 if host is Host.MAPPED else torch.bfloat16)


def test_a_merged_lora_streams_and_so_does_one_beside(mapped, lane, tmp_path, monkeypatch):
    monkeypatch.setattr("wan.experts.can_pack", lambda *device: False)
    model = load_expert(mapped, CONFIG, CONFIG.experts[0], Runtime(CPU), Offload.NONE)
    lora = write_lora(tmp_path / "lora.safetensors", model)
    merged = CONFIG.copy(lora_checkpoint=str(tmp_path / "lora.safetensors"), uses_lora=True)
    x, t, text = [torch.randn(16, 2, 4, 4)], torch.tensor([500]), [torch.randn(3, model.config.text_dim)]
    for config, beside in ((merged, None), (CONFIG, lora)):
        weights = Weights(CPU, Offload.BLOCK)
        expert = functools.partial(load_expert, mapped, config, CONFIG.experts[0], Runtime(CPU), Offload.BLOCK)
        weights.add("a", lambda expert=expert, beside=beside: expert(beside=beside))
        with torch.no_grad():
            expected = expert(beside=beside)(x, t, text)[0]
            assert torch.equal(weights.use("a")(x, t, text)[0], expected)
        weights.done("a")


def in_several(folder, parallel, dtype=torch.float32, then=None, **runtime):
    """Sample a latent; return it, and the bytes of host memory that hold blocks of the last expert, in this process."""
    pipeline = WanT2V(CONFIG, folder, runtime=Runtime(CPU, dtype, parallel=parallel, **runtime))
    request = Request.create(CONFIG, prompt="a red circle", size=(32, 32), frame_num=5, steps=2, seed=1)
    latent = sample(pipeline, request)
    if then is not None:
        pipeline.weights.set_offload(then)
        return sample(pipeline, request), 0
    stream = pipeline.weights._streams.get(CONFIG.experts[0])
    return latent, sum(flat.nbytes for flat in stream.kept.flats.values()) if stream and stream.kept else 0


def streaming_with_others(folder, parallel):
    """Compare the latents of processes that share the work: with resident blocks, and with one slot.

    Return which agree bit for bit, and this process' share of the host memory that blocks take in one process.
    """
    from wan import experts, streaming

    experts.can_pack = lambda *device: False
    streaming.num_slots = lambda sizes: 1
    block = {"offload": Offload.BLOCK}
    cases = [({}, block | {"together": parallel.cfg_size == 1})]
    if parallel.replica_size == parallel.ulysses_size == 2:
        ways = [{"stay": 30_000}, {"host": Host.ONE}, {"host": Host.MAPPED}, {"then": Offload.NONE}]
        half = {"dtype": torch.bfloat16}
        cases += [({}, block | way) for way in ways]
        cases += [(how, block) for how in (half, half | {"convert_model_dtype": True}, half | {"quantize": "int8"})]
    same, expected = [], {}
    for how, way in cases:
        if str(how) not in expected:
            expected[str(how)] = in_several(folder, parallel, **how)[0]
        latent, kept = in_several(folder, parallel, **how, **way)
        same.append(bool(torch.equal(latent, expected[str(how)])))
        if len(same) == 1:
            whole = load_expert(folder, CONFIG, CONFIG.experts[0], Runtime(CPU, torch.float32), Offload.NONE)
            share = kept / sum(flat.nbytes for flat in Streamed(whole, Lane(CPU)).kept.flats.values())
    return same, share


@pytest.mark.parametrize(("count", "ulysses", "cfg"), [(2, 2, 1), (4, 4, 1), (2, 1, 2), (4, 2, 2)])
def test_streams_while_processes_share_the_work(mapped, count, ulysses, cfg):
    """Those that share the tokens share the host memory, too."""
    for same, share in launch(count, streaming_with_others, mapped, Parallel(count, cfg, ulysses)):
        assert same == [True] * len(same) != []
        assert share == pytest.approx(1 / ulysses, rel=0.05)


def test_a_shared_run_of_steps_streams_below(mapped, lane):
    """The division of the tokens may come first: the policy can change later."""

    def shared(steps, tokens, cond):
        return shared.single(steps, tokens, cond)

    model = load_expert(mapped, CONFIG, CONFIG.experts[0], Runtime(CPU), Offload.NONE)
    shared.single, model.run_blocks = model.run_blocks, shared
    Streamed(model, lane)
    assert model.run_blocks is shared and shared.single.__name__ == "run_streamed"


@pytest.mark.parametrize(("steps", "shift", "after"), [(20, 3.0, 2), (40, 12.0, 22), (2, 3.0, 1), (1, 3.0, None)])
def test_the_second_expert_is_read_during_the_last_steps_of_the_first(mapped, monkeypatch, steps, shift, after):
    pipeline, read = WanT2V(CONFIG, mapped, runtime=Runtime(CPU)), []
    monkeypatch.setattr(pipeline.weights, "prefetch", lambda name: read.append((name, seen[-1])))
    request = Request.create(
        CONFIG, prompt="a", size=(32, 32), frame_num=5, steps=steps, shift=shift, boundary=0.875, guidance=1.0
    )
    seen = [0]
    monkeypatch.setattr("wan.pipeline.denoise", lambda *loop: iter([torch.zeros(16, 2, 4, 4)] * steps))
    for _ in pipeline.denoise(request, (None, None), pipeline.clip(request, 0, None)):
        seen.append(len(seen))
    assert read == ([] if after is None else [("low_noise_model", after - 1)])


@pytest.mark.parametrize(("phase", "flag"), [("denoise", "--offload block"), ("decode", "--vae_frames 1")])
def test_a_run_out_of_memory_names_phase_figures_and_flag(tmp_path, monkeypatch, capsys, mapped, phase, flag):
    """A latent that is sampled stays, and the message says how to go on."""

    def fail(self, *given):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(WanT2V, phase, fail)
    flags = [*RUN, "--task", "t2v-A14B", "--size", "64*64", "--frame_num", "5", "--ckpt_dir", str(mapped)]
    assert cli.main([*flags, "--save_file", str(tmp_path / "a.mp4")]) == cli.FAILED
    shown = capsys.readouterr().err
    doing = {"denoise": "denoising", "decode": "decoding"}[phase]
    assert re.search(
        rf"failed: out of memory in {doing}, planned [\d.]+ GB, measured [\d.]+ GB until then; try {flag}", shown
    )
    assert ("--resume" in shown) == (phase == "decode")
