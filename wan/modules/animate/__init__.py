"""Models of character animation and replacement."""

from wan.modules.animate.model import WanAnimateModel

__all__ = ["WanAnimateModel"]
