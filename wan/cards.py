"""Cards and what they are taken to sustain. Nothing here is measured: rates are from published times, or estimates."""

from __future__ import annotations

from typing import NamedTuple

GB = 10**9
BY_HOST = 0.8  # share of the link to the host that cards without a link of their own have to each other


class Card(NamedTuple):
    """Memory in bytes, and rates a second: FLOPs of bf16 products, of attention and of TF32 convolutions, bytes of its
    memory, of its link to the host, and to other cards of the machine."""

    memory: int
    products: float
    attention: float
    convolutions: float
    bandwidth: float
    link: float
    peers: float


def _card(
    gib: float,
    products: float,
    attention: float,
    convolutions: float,
    bandwidth: float,
    link: float,
    peers: float | None = None,
) -> Card:
    rates = (products * 1e12, attention * 1e12, convolutions * 1e12, bandwidth * 1e12, link * 1e9)
    return Card(int(gib * 2**30), *rates, (peers or BY_HOST * link) * 1e9)


# By a part of the name that the driver gives; the longest one that fits counts.
CARDS = {
    "H200": _card(140, 790, 700, 150, 4.3, 50, 350),
    "H100": _card(79.6, 730, 650, 140, 2.9, 50, 350),
    "A100": _card(79.2, 250, 190, 70, 1.7, 25, 230),
    "L40S": _card(44.4, 200, 160, 60, 0.75, 25),
    "RTX 5090": _card(31.4, 150, 150, 60, 1.5, 50),
    "RTX 4090": _card(23.6, 110, 110, 45, 0.9, 25),
    "RTX 3090": _card(23.6, 50, 50, 22, 0.8, 25),
    "RTX 4080": _card(15.7, 75, 75, 30, 0.65, 25),
    "RTX 4060 Ti": _card(15.7, 35, 35, 14, 0.25, 12),
    "RTX 4070": _card(11.7, 48, 48, 19, 0.45, 25),
    "RTX 3060": _card(11.7, 20, 20, 8, 0.3, 25),
    "RTX 4060": _card(7.6, 24, 24, 10, 0.24, 12),
}
DISK = 3e9  # bytes a second that a fast disk gives
PAGEABLE = 6e9  # bytes a second from host memory that is not pinned
CONVERTED = 8e9  # bytes a second of float32 that a processor rounds to bf16


def card_named(name: str) -> Card | None:
    """Find the card of a device's name; None for an unknown one."""
    fits = [known for known in CARDS if known.lower() in name.lower()]
    return CARDS[max(fits, key=len)] if fits else None
