"""The forecast against counts of the released models, and against the memory of real runs."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.counted.live import LiveMemory
from wan import forecast
from wan.configs import WAN_CONFIGS
from wan.forecast import decode_bytes, denoise_bytes, encode_bytes, transformer_bytes
from wan.modules.model import WanModel, WanModelConfig
from wan.modules.vae import VAEConfig
from wan.modules.vae2_1 import CausalVAE2_1
from wan.modules.vae2_2 import CausalVAE2_2, VAE2_2Config
from wan.modules.vae_inference import prepare
from wan.runtime import Runtime

GB = 1e9
VAES = {"2.1": (VAEConfig(), 0.507), "2.2": (VAE2_2Config(), 2.82)}  # and GB of weights
GPU = torch.device("cuda")


@pytest.mark.parametrize(
    ("tokens", "dim", "ffn_dim", "counted"),
    [(32760, 5120, 13824, 3.058), (75600, 5120, 13824, 7.050), (27280, 3072, 14336, 1.847)],
    ids=["A14B 480p", "A14B 720p", "5B"],
)
def test_activations_of_the_released_transformers(tokens, dim, ffn_dim, counted):
    assert denoise_bytes(tokens, dim, ffn_dim, torch.bfloat16) == pytest.approx(counted * GB, rel=0.04)


@pytest.mark.parametrize(("task", "counted"), [("t2v-A14B", 28.95), ("i2v-A14B", 28.95), ("ti2v-5B", 10.14)])
def test_an_expert_keeps_parameters_in_float32(task, counted, monkeypatch):
    with torch.device("meta"):
        tensors = WanModel(WanModelConfig.from_dict(WAN_CONFIGS[task].architecture())).state_dict()

    class Source:
        names, shape = tensors.keys, lambda self, name: tensors[name].shape

    monkeypatch.setattr(forecast, "open_source", lambda folder: Source())
    assert transformer_bytes(Path(), Runtime(GPU)) == pytest.approx(counted * GB, rel=0.001)
    whole = sum(tensor.numel() for tensor in tensors.values())
    assert transformer_bytes(Path(), Runtime(GPU, convert_model_dtype=True)) == 2 * whole
    assert transformer_bytes(Path(), Runtime(GPU, dtype=torch.float32)) == 4 * whole


@pytest.mark.parametrize(
    ("kind", "size", "frames", "at_once", "counted", "half"),
    [
        *(("2.1", (1280, 720), 81, 4, 16.94, 10.31), ("2.1", (1280, 720), 81, 2, 13.55, 7.99)),
        *(("2.1", (1280, 720), 81, 1, 12.30, 7.45), ("2.2", (1280, 704), 121, 4, 17.36, None)),
        *(("2.2", (1280, 704), 121, 2, 13.62, 8.39), ("2.2", (1280, 704), 121, 1, 12.51, 7.28)),
    ],
)
def test_decoding_with_the_released_vaes(kind, size, frames, at_once, counted, half):
    vae, weights = VAES[kind]
    decode = partial(decode_bytes, vae, size, frames, None, at_once=at_once)
    assert decode() + weights * GB == pytest.approx(counted * GB, rel=0.04)
    if half:
        assert decode(conv_dtype=torch.float16) + weights / 2 * GB == pytest.approx(half * GB, rel=0.04)


@pytest.mark.parametrize(
    ("kind", "size", "frames", "at_once", "dtype", "counted"),
    [
        *(("2.1", (1280, 720), 33, 4, torch.float32, 12.74), ("2.1", (1280, 720), 33, 1, torch.float32, 8.56)),
        *(("2.1", (832, 480), 33, 4, torch.float32, 5.807), ("2.1", (832, 480), 33, 1, torch.float16, 2.486)),
        *(("2.1", (1280, 720), 33, 2, torch.float16, 6.02), ("2.2", (1280, 704), 1, 4, torch.float32, 5.0)),
        ("2.2", (1280, 704), 1, 4, torch.float16, 2.61),
    ],
)
def test_encoding_with_the_released_vaes(kind, size, frames, at_once, dtype, counted):
    vae, weights = VAES[kind]
    found = encode_bytes(vae, size, frames, None, at_once=at_once, conv_dtype=dtype)
    assert found + weights * GB * dtype.itemsize / 4 == pytest.approx(counted * GB, rel=0.03)


@pytest.mark.parametrize("frames", [1, 5, 17])
@pytest.mark.parametrize(
    ("network", "config"),
    [
        (CausalVAE2_1, VAEConfig(16, 16, (1, 2, 2, 2), 1)),
        (CausalVAE2_2, VAE2_2Config(16, 48, (1, 2, 2, 2), 1, dec_dim=24)),
    ],
    ids=["2.1", "2.2"],
)
def test_decoding_and_encoding_with_miniatures(network, config, frames):
    """The real code runs on pretended tensors."""

    def counted(run) -> int:
        with LiveMemory() as memory:
            run()
        return memory.peak - sum(weight.nbytes for weight in model.parameters())

    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        model = network(config)
        prepare(model, torch.device("cpu"))
        latent = torch.empty(1, config.z_dim, (frames - 1) // 4 + 1, *(256 // step for step in config.stride[1:]))
        decoding = counted(lambda: [None for _ in model.decode_chunks(latent)])
        encoding = counted(lambda: model.encode(torch.empty(1, 3, frames, 256, 256), chunk=16))
    assert decode_bytes(config, (256, 256), frames, None) == pytest.approx(decoding, rel=0.15)
    if frames > 1 and network is CausalVAE2_1:  # a run encodes one frame with VAE 2.2
        assert encode_bytes(config, (256, 256), frames, None) == pytest.approx(encoding, rel=0.15)


RUN = """
import json, resource, sys
import wan.cli, wan.planning
wan.planning.check_supported_size = lambda *size: None  # the miniatures make one size from text
code = wan.cli.main(sys.argv[1:])
print(json.dumps([code, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="what ru_maxrss counts differs")
@pytest.mark.parametrize(
    ("task", "size", "flags"),
    [
        *(("t2v-A14B", "832*480", []), ("t2v-A14B", "960*704", ["--vae_tile", "256"])),
        *(("i2v-A14B", "1000*700", []), ("i2v-A14B", "1000*700", ["--vae_tile", "256"])),
        *(("ti2v-5B", "1000*700", []), ("ti2v-5B", "1280*704", ["--vae_tile", "512"])),
    ],
)
def test_what_is_expected_on_a_cpu_is_used(tmp_path, task, size, flags):
    from PIL import Image

    Image.linear_gradient("L").resize((1000, 700)).save(tmp_path / "a.png")
    image = [] if task == "t2v-A14B" else ["--image", "a.png", "--fit", "exact"]
    arguments = ["--task", task, "--size", size, "--frame_num", "17", "--sample_steps", "1", *image, *flags]
    done = subprocess.run(
        [sys.executable, "-c", RUN, *arguments, "--prompt", "a red circle", "--device", "cpu", "--progress", "none"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
    )
    code, used = json.loads(done.stdout.splitlines()[-1])
    assert code == 0, done.stderr
    expected = float(done.stderr.split("expected memory about ")[1].split()[0]) * 2**30
    assert expected == pytest.approx(used, rel=0.1, abs=0.15 * 2**30)  # it is printed with one decimal
