"""Wan makes videos from text, images, speech and performances. Public names are imported when they are first used."""

from wan.lazy import lazy_names
from wan.version import VERSION as __version__

_NAMES = {
    "WanT2V": "wan.text2video",
    "WanI2V": "wan.image2video",
    "WanTI2V": "wan.textimage2video",
    "WanS2V": "wan.speech2video",
    "WanAnimate": "wan.animate",
    "WAN_CONFIGS": "wan.configs",
    "SIZE_CONFIGS": "wan.configs",
    "MAX_AREA_CONFIGS": "wan.configs",
    "SUPPORTED_SIZES": "wan.configs",
    "NANO_CONFIGS": "wan.configs",
    "nano_checkpoint": "wan.configs",
}

__all__ = [*_NAMES, "__version__"]
__getattr__, __dir__ = lazy_names(__name__, _NAMES)
