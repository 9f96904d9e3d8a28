"""How the tiny world was made: one command a stage, deterministic from seeds, resumable to the bit.

``python -m comfyui_apprentice.world.recipe STAGE --work DIR`` runs a stage; ``CARD.md`` one folder up tells what came out.
"""
