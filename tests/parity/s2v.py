"""Runners for the golden cases of speech-to-video: the transformer, its parts, and the loop over clips."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from tests.parity import assert_equal, assert_near, under
from tests.recorded import write_lossless, write_wav
from wan.clips import Clip
from wan.configs import WAN_CONFIGS, TaskConfig
from wan.distributed.replica import Replica
from wan.media import to_uint8
from wan.memory import Weights
from wan.modules.rope import rope_table
from wan.modules.s2v import WanModel_S2V
from wan.modules.s2v.audio import AudioInjector, CausalAudioEncoder, inject
from wan.modules.s2v.config import S2VModelConfig
from wan.modules.s2v.framepack import FramePacker, history_positions
from wan.modules.speech import bucket, feature_index, num_speech_features
from wan.request import Request
from wan.runtime import Offload, Runtime
from wan.sampling import make_solver
from wan.speech2video import WanS2V

Tensors = dict[str, Tensor]


def floats(tensors: Tensors) -> Tensors:
    """Convert the stored bfloat16 values, which are exact, to float32."""
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


@torch.no_grad()
def framepack(case: dict, tensors: Tensors) -> None:
    tensors = floats(tensors)
    packer = FramePacker(case["latent_channels"], case["dim"])
    packer.load_state_dict(under(tensors, "weights/frame_packer."))
    head_dim = case["dim"] // case["num_heads"]
    for i, (_, height, width) in enumerate(case["shapes"]):
        assert_near(packer(tensors[f"in/latents_{i}"][None]), tensors[f"out/tokens_{i}"], 1e-4)
        positions = history_positions(height // 2, width // 2)
        assert_equal(positions.int(), tensors[f"out/position_ids_{i}"])
        rows = rope_table(positions, head_dim)
        assert_near(rows[..., 0], tensors[f"out/rope_cos_{i}"], 1e-6)
        assert_near(rows[..., 1], tensors[f"out/rope_sin_{i}"], 1e-6)


@torch.no_grad()
def causal_audio_encoder(case: dict, tensors: Tensors) -> None:
    tensors = floats(tensors)
    config = small_config(
        dim=case["out_dim"],
        audio_dim=case["audio_dim"],
        audio_layers=case["num_layers"],
        num_audio_token=case["num_audio_token"],
    )
    encoder = CausalAudioEncoder(config)
    encoder.load_state_dict(under(tensors, "weights/casual_audio_encoder."))

    def check(features: Tensor, name: str) -> None:
        whole, tokens = encoder(features)
        assert_near(whole, tensors[f"out/global_{name}"], 1e-4)
        assert_near(tokens, tensors[f"out/tokens_{name}"], 1e-4)

    for i in range(len(case["batch_and_length"])):
        check(tensors[f"in/features_{i}"], str(i))
    check(torch.zeros(1, case["num_layers"], case["audio_dim"], case["zero_audio_length"]), "zero_audio")


@torch.no_grad()
def audio_injector(case: dict, tensors: Tensors) -> None:
    tensors = floats(tensors)
    layers, number = case["audio_inject_layers"], case["injector_index"]
    assert layers.index(case["block_index"]) == number
    config = small_config(
        dim=case["dim"], num_heads=case["num_heads"], num_layers=max(layers) + 1, audio_inject_layers=layers
    )
    injector = AudioInjector(config)
    state = under(tensors, "weights/audio_injector.")
    missing = injector.load_state_dict(state, strict=False)
    assert not missing.unexpected_keys
    assert not [name for name in missing.missing_keys if name.split(".")[1] == str(number)]

    attention, norm = injector.at(number)
    x, vectors, audio = (tensors[f"in/{name}"] for name in ("hidden_states", "audio_global", "audio_tokens"))
    count = case["num_frames"] * case["tokens_per_frame"]
    frames = x[:, :count].unflatten(1, (case["num_frames"], -1))
    assert_near(norm(frames, vectors)[0], tensors["out/adain"], 1e-4)
    result = inject(frames, vectors, audio, attention, norm).flatten(1, 2)
    assert_near(torch.cat([result, x[:, count:]], dim=1), tensors["out/hidden_states"], 1e-4)


@torch.no_grad()
def model_forward(case: dict, tensors: Tensors) -> None:
    tensors = floats(tensors)
    model = load_model(case, tensors)
    scenario, given = case["scenario"], {name: tensors[f"in/{name}"] for name in INPUTS}
    seen: dict[str, Tensor] = {}
    for number, block in enumerate(model.blocks):
        block.register_forward_pre_hook(lambda _, args, n=number: seen.__setitem__(f"before{n}", args[0].x))
        block.register_forward_hook(lambda _, args, out, n=number: seen.__setitem__(f"after{n}", out.x))
    embed = model.embed

    def kept(x: list[Tensor], features: Tensor, prepared):
        seen["time"], seen["tokens"] = model.time_embedding(features), (made := embed(x, features, prepared))[0]
        seen["audio"], seen["vectors"] = prepared.audio, prepared.vectors
        seen["modulation"] = made[1].modulation
        return made

    model.embed = kept

    def run(prefix: str, drop: bool, **changes: Tensor) -> None:
        values = given | changes
        lists = {name: [value] for name, value in values.items() if name not in ("t", "audio_input", "x", "context")}
        [y] = model(
            [values["x"]],
            values["t"],
            [values["context"]],
            None,
            audio_input=values["audio_input"],
            motion_frames=scenario["motion_frames"],
            drop_motion_frames=drop,
            **lists,
        )
        out = under(tensors, f"out/{prefix}/")
        assert_near(y, out["y"], 1e-4)
        if "tokens_before_blocks" in out:
            assert_near(seen["before0"], out["tokens_before_blocks"], 1e-4)
            assert_near(seen["after0"], out["block0"], 1e-4)
            assert_near(seen["tokens"].rope[0, ..., 0], out["rope_cos"], 1e-6)
            assert_near(seen["tokens"].rope[0, ..., 1], out["rope_sin"], 1e-6)
            positions = rope_table(out["position_ids"], model.config.head_dim)
            assert_near(seen["tokens"].rope[0], positions, 1e-6)
        if "last_block" in out:
            assert_near(seen[f"after{model.config.num_layers - 1}"], out["last_block"], 1e-4)
            assert_near(seen["time"], tensors["out/time_embedding"], 1e-4)
            assert_near(seen["modulation"].transpose(0, 1)[None], tensors["out/modulation_e0"], 1e-4)
            assert_near(seen["vectors"], tensors["out/audio_global"], 1e-4)
            assert_near(seen["audio"], tensors["out/audio_tokens"], 1e-4)

    run("motion", False)
    run("drop", True)
    nothing = {name: torch.zeros_like(given[name]) for name in ("cond_states", "audio_input")}
    run("nocond_noaudio", False, **nothing)


INPUTS = ("x", "t", "context", "ref_latents", "motion_latents", "cond_states", "audio_input")


def small_config(**fields) -> S2VModelConfig:
    """Make a config for a part of the model; `num_heads` and layers of the family would not fit small widths."""
    return S2VModelConfig(**{"num_heads": 1, "num_layers": 1, "audio_inject_layers": ()} | fields)


def load_model(case: dict, tensors: Tensors) -> WanModel_S2V:
    state = under(tensors, "weights/")
    layers = state["casual_audio_encoder.weights"].shape[1]
    config = S2VModelConfig.from_dict({"model_type": "s2v", "audio_layers": layers} | case["config"])
    model = WanModel_S2V(config)
    model.load_state_dict(state, strict=True)
    return model.requires_grad_(False).eval()


# ---------------------------------------------------------------------------------------------------------------------
# The whole loop over clips


class RecordedVAE:
    """Stand-in of the recordings: means of 8 x 8 pixels, groups of frames, products of channels."""

    def __init__(self, case: dict, tensors: Tensors):
        self.to_latent, self.to_pixels = tensors["in/vae_encode_matrix"], tensors["in/vae_decode_matrix"]
        self.encode_weights = torch.tensor(case["vae_encode_weights"])
        self.decode_weights = torch.tensor(case["vae_decode_weights"])

    def encode(self, videos: list[Tensor]) -> list[Tensor]:
        [video] = videos
        small = torch.nn.functional.avg_pool2d(video, 8)
        groups = small[:, 1:].unflatten(1, (-1, len(self.encode_weights)))
        frames = torch.cat([small[:, :1], torch.einsum("cngij,g->cnij", groups, self.encode_weights)], dim=1)
        return [torch.einsum("cnij,zc->znij", frames, self.to_latent)]

    def decode_stream(self, latent: Tensor) -> Iterator[Tensor]:
        small = torch.einsum("znij,cz->cnij", latent, self.to_pixels)
        for number, frame in enumerate(small.unbind(1)):
            weights = self.decode_weights if number else self.decode_weights[-1:]
            frames = frame[:, None] * weights[:, None, None]
            yield frames.repeat_interleave(8, -1).repeat_interleave(8, -2).clamp(-1, 1)


class RecordedSpeech:
    """Recorded features at 30 Hz, in place of those of a speech encoder."""

    def __init__(self, features: Tensor, fps: float):
        self.features, self.fps = features, fps

    def clip(self, first: int, count: int) -> Tensor:
        return bucket(self.features, feature_index(first, count, self.features.shape[1], self.fps))


class RecordedS2V(WanS2V):
    """Speech-to-video whose models are those of a recording."""

    def __init__(self, case: dict, tensors: Tensors):
        scenario = case["scenario"]
        self.config = WAN_CONFIGS["s2v-14B"].copy(motion_frames=scenario["motion_frames"])
        self.runtime = Runtime.from_flags(device="cpu", dtype="fp32")
        self.phases, self.replica = {}, Replica(self.runtime.parallel, self.runtime.device)
        self.weights = Weights(self.runtime.device, Offload.NONE)
        self.model_of_case = load_model(case, tensors)
        self.weights.add(".", lambda: self.model_of_case)
        self._vae = RecordedVAE(case, tensors)
        self.tensors, self.clips = tensors, []

    def encode_prompts(self, request: Request) -> tuple[Tensor, Tensor]:
        return self.tensors["in/context"], self.tensors["in/context_null"]

    def speech(self, request: Request) -> RecordedSpeech:
        return RecordedSpeech(self.tensors["in/audio_features_30fps"], float(request.fps))

    def clip(self, request: Request, index: int, tail: Tensor | None) -> Clip:
        self.clips.append(super().clip(request, index, tail))
        return self.clips[-1]


def pipeline_trace(case: dict, tensors: Tensors) -> None:
    tensors, scenario = floats(tensors), case["scenario"]
    pipeline = RecordedS2V(case, tensors)
    with tempfile.TemporaryDirectory() as folder:
        request = recorded_request(pipeline.config, case, tensors, Path(folder))
        assert pipeline.num_clips(request) == case["num_clips"]
        assert list(request.framing.used[::-1]) == case["output_size"]
        video = pipeline.video(request)

    expected = tensors["out/video_pooled8"]
    assert video.shape[1] == pipeline.num_frames(request) == expected.shape[1]
    assert_near(torch.nn.functional.avg_pool2d(video, 8), expected, 2e-4)
    pixels = to_uint8(request.given_frame(request.image)[:, None])[0]
    assert (pixels.int() - tensors["out/ref_pixels_uint8"].int()).abs().max() <= 1  # their scaling rounds back
    solver = make_solver(request.solver, request.steps, request.shift)
    assert solver.timesteps.tolist() == tensors["out/timesteps"].tolist()
    for number, clip in enumerate(pipeline.clips):
        out = under(tensors, f"out/clip{number}/")
        given = clip.positive
        assert (given["motion_latents"] is None) == case["drop_motion_frames"][number]
        assert_equal(pipeline.noise(request, clip), out["noise"])
        assert_near(given["ref_latents"][0], tensors["out/ref_latents"], 1e-4)
        assert_near(given["audio_input"], out["audio_input"], 1e-5)
        assert not clip.negative["audio_input"].any()
        if given["motion_latents"] is not None:
            assert_near(given["motion_latents"][0], out["motion_latents"], 2e-4)
        if given["cond_states"] is not None:
            assert_near(given["cond_states"][0], out["cond_states"], 1e-4)
        elif "cond_states" in out:
            assert not out["cond_states"].any()
    assert scenario["guide_scale"] == 1 or len(pipeline.clips) == case["num_clips"]


def recorded_request(config: TaskConfig, case: dict, tensors: Tensors, folder: Path) -> Request:
    """Make the request of a recording from files that hold its image, its pose video, and silence of its length."""
    scenario = case["scenario"]
    features = tensors["in/audio_features_30fps"].shape[1]
    samples = next(n for n in range(720, 1 << 30, 80) if num_speech_features(n) == features)
    write_wav(folder / "audio.wav", torch.zeros(samples).numpy())
    given = {name: scenario[name] for name in ("shift", "solver", "steps", "seed", "max_area")}
    if pose := scenario.get("pose"):
        write_lossless(folder / "pose.mkv", tensors["in/pose_frames"].numpy(), pose["fps"])
        given["pose_video"] = folder / "pose.mkv"
    return Request.create(
        config,
        prompt="recorded",
        image=Image.fromarray(tensors["in/ref_image_uint8"].numpy()),
        audio=folder / "audio.wav",
        frame_num=scenario["infer_frames"],
        num_clip=scenario["num_repeat"],
        guidance=scenario["guide_scale"],
        start_from_ref=scenario["init_first_frame"],
        as_upstream=True,
        **given,
    )


RUNNERS = {
    "framepack": framepack,
    "causal_audio_encoder": causal_audio_encoder,
    "audio_injector": audio_injector,
    "model_forward": model_forward,
    "pipeline_trace": pipeline_trace,
}
