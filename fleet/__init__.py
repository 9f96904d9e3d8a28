"""More than one machine: Ray's workers, ComfyUIs that are there already, and a service."""
