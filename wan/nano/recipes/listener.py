"""Train a speech encoder: it learns to tell loudness, voicing and vowels of synthetic speech."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wan.modules.speech import KERNELS, REACH, STRIDE, STRIDES, SpeechEncoder, num_states, save_speech_encoder
from wan.nano import speech
from wan.training.config import LoopConfig
from wan.training.loop import fit
from wan.training.loss import Loss

SPEECH = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64,
    "num_conv_pos_embeddings": 32, "num_conv_pos_embedding_groups": 4, "conv_dim": [32] * 7, "conv_bias": True,
    "conv_kernel": KERNELS, "conv_stride": STRIDES, "do_stable_layer_norm": True, "feat_extract_norm": "layer",
    "feat_extract_activation": "gelu", "hidden_act": "gelu", "layer_norm_eps": 1e-5, "add_adapter": False,
}  # fmt: skip
SECONDS = 16  # of a speech
WINDOW = 5 * speech.RATE + 80  # samples of it in a batch of the speech encoder: 250 states
AHEAD = (0.0, 0.06)  # seconds from a state to the loudness that is told: a video frame shows the middle of its time


class Listener(nn.Module):
    """Speech encoder in training, and what reads loudness, voicing and vowels from the mean of its hidden states."""

    def __init__(self):
        super().__init__()
        self.encoder = SpeechEncoder(SPEECH)
        self.told = nn.Linear(self.encoder.width, len(AHEAD) + 2 + len(speech.VOWELS) + 1)

    def forward(self, samples: Tensor) -> Tensor:
        """samples [B, n] -> [B, T, values]: loudness now and ahead, loudness of this moment, voicing, vowels."""
        found = self.encoder.wav2vec2(samples, output_hidden_states=True)
        states = torch.stack([*found.hidden_states[:-1], found.last_hidden_state])
        return self.told(states.mean(0))


def train(folder: Path, target: Path, speeches: int, steps: int) -> None:
    """Train from nothing; data and state go to `folder`, the encoder to `target`."""
    torch.manual_seed(7)
    listener = Listener()
    samples, targets = _speeches(folder / "speech.npz", speeches, seed=1)
    unseen = _speeches(folder / "speech-unseen.npz", 16, seed=2)

    def draw(index: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng((9, index))
        which, starts = rng.integers(len(samples), size=8), rng.integers(samples.shape[1] // STRIDE - 252, size=8)
        x = [samples[n, s * STRIDE : s * STRIDE + WINDOW] for n, s in zip(which, starts, strict=True)]
        y = [targets[n, s : s + num_states(WINDOW)] for n, s in zip(which, starts, strict=True)]
        return torch.from_numpy(np.stack(x)).float(), torch.from_numpy(np.stack(y)).float()

    def objective(batch: tuple[Tensor, Tensor], generator: torch.Generator) -> Loss:
        x, y = batch
        told, count = listener(x + 0.05 * torch.rand(8, 1, generator=generator) * _noise(x, generator)), len(AHEAD) + 1
        loud = F.mse_loss(told[..., :count], y[..., :count])
        voiced = F.binary_cross_entropy_with_logits(told[..., count], y[..., count])
        vowels = F.cross_entropy(told[..., count + 1 :].flatten(0, 1), y[..., count + 1].long().flatten())
        return Loss(10 * loud + voiced + 0.5 * vowels, {"loud": loud, "voiced": voiced, "vowels": vowels})

    def preview(step: int) -> None:
        print(f"step {step}  {hearing_score(listener, *unseen)}", flush=True)

    config = LoopConfig(
        steps=steps,
        learning_rate=3e-3,
        final_learning_rate=3e-5,
        warmup_steps=min(50, steps // 4),
        ema_decay=0.99,
        seed=7,
        log_every=max(1, min(50, steps // 4)),
        checkpoint_every=250,
        preview_every=max(1, min(250, steps // 2)),
    )
    fit(listener, objective, draw, config, folder / "s2v-speech", preview=preview)
    save_speech_encoder(listener.encoder, target)
    print(f"at the end: {hearing_score(listener, *unseen)}", flush=True)


def _noise(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator)


def _speeches(path: Path, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Map normalised speeches, float16 [N, n], and what is to be told of each state, [N, T, values], from a file."""
    if not path.exists():
        told = [speech.speak(SECONDS, seed * 100_000 + n) for n in range(count)]
        path.parent.mkdir(parents=True, exist_ok=True)
        samples = [(s.samples - s.samples.mean()) / s.samples.std() for s in told]
        np.savez(path, samples=np.float16(samples), targets=np.float16([_of_states(s) for s in told]))
    with np.load(path) as file:
        return file["samples"], file["targets"]


def _of_states(told: speech.Speech) -> np.ndarray:
    """List of each state of the encoder: the smooth loudness now and ahead, loudness, voicing, and the vowel."""
    times = (np.arange(num_states(len(told.samples))) * STRIDE + REACH / 2) / speech.RATE
    smooth = speech.envelope(told.samples, fps=100)
    ahead = [np.interp(times + shift, (np.arange(len(smooth)) + 0.5) / 100, smooth) for shift in AHEAD]
    rows = np.minimum((times * 100).round().astype(int), len(told.loudness) - 1)
    return np.stack([*ahead, told.loudness[rows], told.voiced[rows], told.vowel[rows] + 1], axis=1)


@torch.no_grad()
def hearing_score(listener: Listener, samples: np.ndarray, targets: np.ndarray) -> str:
    """Correlation with the loudness of unseen voices, and the shares of voicing and vowels that are right."""
    told = np.stack([listener(torch.from_numpy(s[None]).float())[0].numpy() for s in samples])
    count = len(AHEAD) + 1
    alike = [np.corrcoef(told[..., n].ravel(), targets[..., n].ravel())[0, 1] for n in range(count)]
    voiced = ((told[..., count] > 0) == (targets[..., count] > 0.5)).mean()
    spoken = targets[..., count + 1] > 0
    vowels = (told[..., count + 2 :].argmax(-1) + 1 == targets[..., count + 1])[spoken].mean()
    loud = f"loudness {alike[0]:.3f}, ahead {alike[1]:.3f}, at once {alike[2]:.3f}"
    return f"{loud}, voicing {voiced:.3f}, vowels {vowels:.3f}"
