"""Wan: text and images become video. The public names, each imported when it is first asked for."""

from typing import Any

from wan.version import VERSION as __version__

_NAMES = {
    "WanT2V": "wan.text2video",
    "WanI2V": "wan.image2video",
    "WanTI2V": "wan.textimage2video",
    "WAN_CONFIGS": "wan.configs",
    "SIZE_CONFIGS": "wan.configs",
    "MAX_AREA_CONFIGS": "wan.configs",
    "SUPPORTED_SIZES": "wan.configs",
}
_COMING = ("WanS2V", "WanAnimate")

__all__ = [*_NAMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        from importlib import import_module

        return getattr(import_module(_NAMES[name]), name)
    if name in _COMING:
        raise ImportError(f"wan.{name} is not available yet, it comes later; now: WanT2V, WanI2V, WanTI2V")
    raise AttributeError(f"module 'wan' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
