"""Networks: diffusion transformer, text encoder, VAEs. Written for one device; `wan.pipeline` puts them together."""
