"""Several processes, wrapped around models that are written for one device."""
