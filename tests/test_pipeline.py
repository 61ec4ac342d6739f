"""The pipeline on random miniatures: every component is real, only the pictures are noise."""

import inspect
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import pytest
import torch
from PIL import Image

from tests.runs import sample, timesteps_of
from wan import WanI2V, WanT2V, WanTI2V
from wan.configs import NANO_CONFIGS, WAN_CONFIGS
from wan.nano.random import write_random_checkpoint
from wan.pipeline import WanPipeline
from wan.request import Request
from wan.runtime import Runtime

CONFIG = NANO_CONFIGS["t2v-A14B"]
FLOAT32 = Runtime.from_flags(device="cpu", dtype="fp32")
WIDE = Image.new("RGB", (1280, 720))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_random_checkpoint(tmp_path_factory.mktemp("random"))


def request(**changes):
    values = {"prompt": "a red circle moves left", "size": (32, 32), "frame_num": 5, "steps": 3, "seed": 1}
    return Request.create(CONFIG, **values | changes)


@pytest.fixture
def pipeline(folder):
    return WanT2V(CONFIG, folder, runtime=FLOAT32)


def test_generate_returns_the_video_that_upstreams_users_expect(folder):
    pipeline = WanT2V(CONFIG, folder, runtime=Runtime.from_flags(device="cpu"))
    video = pipeline.generate("a red circle moves left", size=(32, 48), frame_num=9, sampling_steps=2, seed=3)
    assert video.shape == (3, 9, 48, 32) and video.dtype == torch.float32
    assert video.min() >= -1 and video.max() <= 1
    assert list(pipeline.phases) == ["encode", "denoise", "decode"]
    assert all(stats.seconds > 0 for stats in pipeline.phases.values())


CALLS = [(WanT2V, "generate", ()), (WanI2V, "generate", (WIDE,)), (WanTI2V, "generate", ())]
CALLS += [(WanTI2V, "generate", (WIDE,)), (WanTI2V, "t2v", ()), (WanTI2V, "i2v", (WIDE,))]


@pytest.mark.parametrize("configs", [WAN_CONFIGS, NANO_CONFIGS], ids=["released", "nano"])
@pytest.mark.parametrize("pipeline, method, inputs", CALLS, ids=lambda value: getattr(value, "task", None))
def test_what_a_call_leaves_out_is_as_on_the_command_line(monkeypatch, configs, pipeline, method, inputs):
    monkeypatch.setattr(pipeline, "video", lambda self, request, **how: (request, how))
    ours = pipeline.__new__(pipeline)
    ours.config = configs[pipeline.task]
    requests = [getattr(ours, method)("a fox", *inputs) for _ in range(2)]
    request, how = requests[0]
    assert request == Request.create(ours.config, prompt="a fox", seed=request.seed, image=next(iter(inputs), None))
    assert how == {"offload_model": None, "on_step": None}, "the policy of the runtime stays"
    assert request.seed != requests[1][0].seed, "the seed is drawn"


def test_defaults_are_those_of_the_tasks(monkeypatch):
    monkeypatch.setattr(WanPipeline, "video", lambda self, request, **how: request)

    def made(pipeline, configs, method="generate", *inputs):
        ours = pipeline.__new__(pipeline)
        ours.config = configs[pipeline.task]
        r = getattr(ours, method)("a fox", *inputs)
        return r.framing.used, r.frame_num, r.steps, r.shift, r.guidance, r.boundary

    assert made(WanT2V, WAN_CONFIGS) == ((1280, 720), 81, 40, 12.0, (3.0, 4.0), 0.875)
    assert made(WanI2V, WAN_CONFIGS, "generate", WIDE) == ((1280, 720), 81, 40, 5.0, (3.5, 3.5), 0.9)
    for call in (("generate",), ("t2v",), ("generate", WIDE), ("i2v", WIDE)):
        size, *rest = made(WanTI2V, WAN_CONFIGS, *call)
        assert size == ((1248, 704) if WIDE in call else (1280, 704)) and rest == [121, 50, 5.0, (5.0, 5.0), None]
    assert made(WanT2V, NANO_CONFIGS) == ((64, 64), 17, 20, 3.0, (3.0, 3.0), 0.875)


ORDER = "shift sample_solver sampling_steps guide_scale n_prompt seed offload_model".split()
LAST = ["init_on_cpu", "convert_model_dtype"]


@pytest.mark.parametrize(
    "method, names",
    [
        (WanT2V.generate, ["input_prompt", "size", "frame_num", *ORDER]),
        (WanI2V.generate, ["input_prompt", "img", "max_area", "frame_num", *ORDER]),
        (WanTI2V.generate, ["input_prompt", "img", "size", "max_area", "frame_num", *ORDER]),
        (WanTI2V.t2v, ["input_prompt", "size", "frame_num", "settings"]),
        (WanTI2V.i2v, ["input_prompt", "img", "max_area", "frame_num", *ORDER[:3], "settings"]),
        (WanT2V.__init__, [*"config checkpoint_dir device_id rank t5_fsdp dit_fsdp use_sp t5_cpu".split(), *LAST]),
    ],
)
def test_arguments_come_in_upstreams_order(method, names):
    _, *parameters = inspect.signature(method).parameters.values()
    assert [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.VAR_POSITIONAL)] == names


def test_what_a_constructor_leaves_out_is_as_upstream():
    parameters = inspect.signature(WanT2V).parameters.values()
    given = {p.name: p.default for p in parameters if p.default is not p.empty and p.kind is p.POSITIONAL_OR_KEYWORD}
    flags = dict.fromkeys("t5_fsdp dit_fsdp use_sp t5_cpu convert_model_dtype".split(), False)
    assert given == {"device_id": 0, "rank": 0, "init_on_cpu": True} | flags


def test_the_same_seed_gives_the_same_frames_and_another_does_not(folder, pipeline):
    first = sample(pipeline, request())
    assert torch.equal(sample(WanT2V(CONFIG, folder, runtime=FLOAT32), request()), first)
    assert not torch.equal(sample(pipeline, request(seed=2)), first)


def test_the_prompt_reaches_the_model(pipeline):
    assert not torch.equal(sample(pipeline, request()), sample(pipeline, request(prompt="a blue square moves up")))


def test_every_step_is_reported_and_may_stop_the_run(pipeline):
    seen = []
    sample(pipeline, request(), lambda done, total, latent: seen.append((done, total, tuple(latent.shape))))
    assert seen == [(i, 3, (16, 2, 4, 4)) for i in (1, 2, 3)]

    def stop(done, total, latent):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(pipeline, request(), stop)


def count_forwards(pipeline):
    counts = {}
    for name in pipeline.config.experts:
        model = pipeline.weights.get(name)
        model.register_forward_hook(lambda *_, name=name: counts.update({name: counts.get(name, 0) + 1}))
    return counts


def test_the_boundary_divides_the_steps_between_the_experts(pipeline):
    counts = count_forwards(pipeline)
    sample(pipeline, request(boundary=0.0))
    assert counts == {"high_noise_model": 6}
    counts.clear()
    sample(pipeline, request(boundary=1.0))
    assert counts == {"low_noise_model": 6}
    counts.clear()
    sample(pipeline, request(boundary=0.875))
    assert counts == {"high_noise_model": 2, "low_noise_model": 4}


def test_guidance_one_costs_one_forward_and_reads_no_negative_prompt(pipeline):
    counts = count_forwards(pipeline)
    latent = sample(pipeline, request(guidance=1.0, boundary=0.0))
    assert counts == {"high_noise_model": 3}
    assert torch.equal(sample(pipeline, request(guidance=1.0, boundary=0.0, negative_prompt="blue")), latent)
    assert not torch.equal(sample(pipeline, request(guidance=2.0, boundary=0.0)), latent)


def test_guidance_belongs_to_its_expert(pipeline):
    both = sample(pipeline, request(guidance=(1.0, 4.0), boundary=0.0))
    assert torch.equal(sample(pipeline, request(guidance=(9.0, 4.0), boundary=0.0)), both)
    assert not torch.equal(sample(pipeline, request(guidance=(1.0, 9.0), boundary=0.0)), both)


def test_experts_load_when_they_are_first_needed(pipeline):
    assert not pipeline.weights._modules
    sample(pipeline, request(boundary=0.0))
    assert "high_noise_model" in pipeline.weights._modules
    assert "low_noise_model" not in pipeline.weights._modules


@pytest.mark.parametrize("boundary, fetched", [(0.0, []), (0.875, ["low_noise_model"]), (1.0, [])])
def test_the_second_expert_is_fetched_ahead_when_it_will_work(pipeline, monkeypatch, boundary, fetched):
    names = []
    monkeypatch.setattr(pipeline.weights, "prefetch", names.append)
    sample(pipeline, request(boundary=boundary))
    assert names == fetched


def test_a_model_loaded_by_another_thread_is_the_same(pipeline):
    with ThreadPoolExecutor(1) as pool:
        loaded = pool.submit(pipeline._load_expert, "low_noise_model")
        sample(pipeline, request(boundary=0.0))
    expected = pipeline.weights.get("low_noise_model").state_dict()
    for name, tensor in loaded.result().state_dict().items():
        assert torch.equal(tensor, expected[name])


def test_bfloat16_stays_close_to_float32(folder, pipeline):
    exact = sample(pipeline, request())
    half = sample(WanT2V(CONFIG, folder, runtime=Runtime.from_flags(device="cpu")), request())
    rounded = WanT2V(CONFIG, folder, runtime=Runtime.from_flags(device="cpu", convert_model_dtype=True))
    for latent in (half, sample(rounded, request())):
        assert (latent - exact).square().mean().sqrt() < 0.03 * exact.std()


def test_streamed_chunks_are_the_video(pipeline):
    latent = sample(pipeline, request(frame_num=9))
    chunks = list(pipeline.decode(latent))
    assert len(chunks) > 1
    whole = pipeline.vae.decode([latent])[0]
    torch.testing.assert_close(torch.cat(chunks, dim=1), whole)


def test_tiles_change_the_memory_and_not_the_video(folder, pipeline):
    latent = sample(pipeline, request(size=(128, 128)))
    whole = torch.cat(list(pipeline.decode(latent)), dim=1)
    tiled = WanT2V(pipeline.config, folder, runtime=replace(pipeline.runtime, vae_tile=64))
    assert tiled.vae.tiling == 64
    torch.testing.assert_close(torch.cat(list(tiled.decode(latent)), dim=1), whole, atol=1e-4, rtol=0)


def test_broken_weights_stop_after_the_first_step(folder, pipeline):
    pipeline.weights.get("high_noise_model").head.head.bias.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="--attention sdpa or --dtype fp32"):
        sample(pipeline, request(boundary=0.0))


def test_another_tasks_model_is_refused_before_weights_are_read(tmp_path):
    folder = write_random_checkpoint(tmp_path)
    path = folder / "low_noise_model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"in_dim": 36}))
    with pytest.raises(ValueError, match=r"low_noise_model/config.json has in_dim 36, .* needs 16: this is another"):
        WanT2V(CONFIG, folder, runtime=FLOAT32)


def test_missing_files_are_listed_together(tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match="nothing-here"):
        WanT2V(CONFIG, tmp_path / "nothing-here", runtime=FLOAT32)


def test_experts_are_told_their_kernel_once(pipeline):
    """Choosing "auto" anew in every call would put the search for installed kernels into the compiled graphs."""
    block = pipeline.weights.get("high_noise_model").blocks[0]
    for layer in (block.self_attn, block.cross_attn):
        assert layer.attend.keywords == {"backend": "sdpa"}


def test_several_processes_are_refused(folder):
    with pytest.raises(ValueError, match="need several processes, and this is one; start the program with torchrun"):
        WanT2V(CONFIG, folder, dit_fsdp=True)


def test_named_backends_are_checked_before_loading(folder):
    with pytest.raises(ValueError, match="needs a CUDA device"):
        WanT2V(CONFIG, folder, runtime=replace(FLOAT32, attention="flash2"))


@pytest.mark.gpu
@pytest.mark.parametrize("flags", [{}, {"offload_model": False}, {"t5_cpu": True}], ids=str)
def test_a_gpu_computes_what_a_cpu_does(folder, pipeline, flags):
    """All weights and tensors are on one device, under every offload policy, also in a second run."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    expected = sample(pipeline, request(noise_device="cpu"))
    on_gpu = WanT2V(CONFIG, folder, runtime=Runtime.from_flags(device="cuda", dtype="fp32", **flags))
    for _ in range(2):
        latent = sample(on_gpu, request(noise_device="cpu"))
        torch.testing.assert_close(latent, expected, atol=1e-3, rtol=1e-3)
        assert torch.cat(list(on_gpu.decode(latent)), dim=1).shape == (3, 5, 32, 32)


def test_a_changed_config_counts(folder):
    cfg = NANO_CONFIGS["t2v-A14B"]
    cfg.param_dtype, cfg.num_train_timesteps, cfg.boundary = torch.float32, 500, 0.5
    pipeline = WanT2V(cfg, folder)
    assert pipeline.runtime.dtype == torch.float32
    seen = {}

    def note(_, inputs, name):
        seen.setdefault(name, []).append(int(timesteps_of(inputs[1])[0]))

    for name in cfg.experts:
        pipeline.weights.get(name).register_forward_pre_hook(partial(note, name=name))
    cfg.sample_steps = 4
    sample(pipeline, Request.create(cfg, prompt="a red circle", size=(32, 32), frame_num=5, shift=1.0, guidance=1.0))
    assert seen == {"high_noise_model": [499, 374], "low_noise_model": [249, 124]}


def test_the_attributes_of_upstreams_pipelines(pipeline, folder):
    config = pipeline.config
    values = (pipeline.boundary, pipeline.num_train_timesteps, pipeline.vae_stride, pipeline.patch_size)
    assert values == (config.boundary, 1000, (4, 8, 8), (1, 2, 2))
    assert (pipeline.device, pipeline.param_dtype, pipeline.rank, pipeline.sp_size) == (
        FLOAT32.device,
        torch.float32,
        0,
        1,
    )
    assert pipeline.sample_neg_prompt == config.sample_neg_prompt and not pipeline.t5_cpu
    assert pipeline.low_noise_model is pipeline.weights.get("low_noise_model")
    assert pipeline.high_noise_model is pipeline.weights.get("high_noise_model")
    assert pipeline.high_noise_model.dim == 32 and pipeline.text_encoder.model and pipeline.vae.model
    with pytest.raises(AttributeError, match="WanT2V has high_noise_model and low_noise_model, but no model"):
        pipeline.model  # noqa: B018
    assert not hasattr(pipeline, "model")


def test_a_model_that_is_assigned_takes_the_place_of_the_loaded_one(folder):
    def make():
        pipeline = WanT2V(NANO_CONFIGS["t2v-A14B"], folder, runtime=FLOAT32)
        pipeline.boundary = 0.9
        return pipeline

    plain, changed = make(), make()
    changed.low_noise_model = changed.high_noise_model
    assert changed.config.boundary == 0.9 and plain.low_noise_model is not plain.high_noise_model
    other = sample(make(), request(boundary=0.0))  # the high-noise expert all the way
    assert torch.equal(sample(changed, request(boundary=0.9)), other)
    assert not torch.equal(sample(plain, request(boundary=0.9)), other)


def test_a_pipeline_of_one_model_has_it_as_model(tmp_path):
    folder = write_random_checkpoint(tmp_path, "ti2v-5B")
    pipeline = WanTI2V(NANO_CONFIGS["ti2v-5B"], folder, runtime=FLOAT32)
    assert pipeline.model is pipeline.weights.get(".") and pipeline.model.model_type == "ti2v"
    with pytest.raises(AttributeError, match="WanTI2V has model, but no low_noise_model"):
        pipeline.low_noise_model  # noqa: B018
