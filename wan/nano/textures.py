"""Random pictures with the statistics of photographs, on which a model learns to copy any image."""

import numpy as np


def texture(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draw a random picture, uint8 [size, size, 3]: clouds whose amplitude falls with frequency, in a random palette.

    The power law is that of natural images (D. J. Field, 1987); the steepness is drawn between smooth and rough.
    """
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    frequency[0, 0] = np.inf  # no mean
    amplitude = frequency ** -rng.uniform(1.2, 2.2)
    spectrum = amplitude * np.exp(2j * np.pi * rng.random((3, *amplitude.shape)))
    clouds = np.fft.irfft2(spectrum, s=(size, size))
    clouds /= clouds.std(axis=(1, 2), keepdims=True)
    palette = rng.normal(size=(3, 3)) / 3**0.5  # three clouds mixed into red, green and blue
    image = rng.uniform(60, 195, 3) + rng.uniform(20, 60) * np.einsum("chw,cr->hwr", clouds, palette)
    return image.clip(0, 255).astype(np.uint8)
