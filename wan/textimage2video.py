"""Text, or text and image, to video: the image becomes a clean first latent frame that stays fixed."""

from PIL import Image

from wan.geometry import PATCH_SIZE, Stride, best_output_size


def fit_image(image: Image.Image, max_area: int, vae_stride: Stride, patch: Stride = PATCH_SIZE) -> Image.Image:
    """Resize (Lanczos) and crop the centre to the legal size of about `max_area` pixels closest in aspect ratio."""
    step_w, step_h = vae_stride[2] * patch[2], vae_stride[1] * patch[1]
    width, height = best_output_size(*image.size, step_w, step_h, max_area)
    scale = max(width / image.width, height / image.height)
    resized = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    left, top = (resized.width - width) // 2, (resized.height - height) // 2
    return resized.crop((left, top, left + width, top + height))
