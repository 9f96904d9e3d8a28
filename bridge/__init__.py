"""All that knows ComfyUI below the nodes: batches and latents, noise, sampling, memory, fingerprints, training."""
