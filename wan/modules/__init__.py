"""Networks: diffusion transformer, text encoder, VAEs. Written for one device; see `wan.pipeline` for how they are put together."""
