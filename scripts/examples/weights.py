"""Files that the examples for real models load: for the front end's download dialog, as ComfyUI's own templates name them.

A hash stands here only where it is published; the others are left out.
"""

from __future__ import annotations

from comfyui_apprentice.weights.catalogue import FILES, HUB

Entry = dict[str, str]


def _file(directory: str, repo: str, path: str, sha256: str = "", name: str = "") -> Entry:
    entry = {"name": name or path.rsplit("/", 1)[-1], "url": f"{HUB}/{repo}/resolve/main/{path}", "directory": directory}
    return entry | ({"hash": sha256, "hash_type": "SHA256"} if sha256 else {})


def _oracle(local: str) -> Entry:
    file = next(file for file in FILES if file.local == local)
    entry = {"name": local, "url": f"{HUB}/{file.repo}/resolve/{file.revision}/{file.filename}", "directory": "oracles"}
    return entry | ({"hash": file.sha256, "hash_type": "SHA256"} if file.sha256 else {})


SDXL = _file("checkpoints", "stabilityai/stable-diffusion-xl-base-1.0", "sd_xl_base_1.0.safetensors",
             "31e35c80fc4829d14f90153f4c74cd59c90b779f6afe05a74cd6120b893f7e5b")  # fmt: skip
SDXL_TURBO = _file("checkpoints", "stabilityai/sdxl-turbo", "sd_xl_turbo_1.0_fp16.safetensors",
                   "e869ac7d6942cb327d68d5ed83a40447aadf20e0c3358d98b2cc9e270db0da26")  # fmt: skip
SD15 = _file("checkpoints", "Comfy-Org/stable-diffusion-v1-5-archive", "v1-5-pruned-emaonly-fp16.safetensors",
             "e9476a13728cd75d8279f6ec8bad753a66a1957ca375a1464dc63b37db6e3916")  # fmt: skip
SCHNELL = _file("checkpoints", "Comfy-Org/flux1-schnell", "flux1-schnell-fp8.safetensors",
                "ead426278b49030e9da5df862994f25ce94ab2ee4df38b556ddddb3db093bf72")  # fmt: skip
DEV = _file("checkpoints", "Comfy-Org/flux1-dev", "flux1-dev-fp8.safetensors",
            "8e91b68084b53a7fc44ed2a3756d821e355ac1a7b6fe29be760c1db532f3d88a")  # fmt: skip
LCM_SDXL = _file("loras", "latent-consistency/lcm-lora-sdxl", "pytorch_lora_weights.safetensors",
                 "a764e6859b6e04047cd761c08ff0cee96413a8e004c9f07707530cd776b19141", "lcm-lora-sdxl.safetensors")  # fmt: skip
LCM_SD15 = _file("loras", "latent-consistency/lcm-lora-sdv1-5", "pytorch_lora_weights.safetensors",
                 "8f90d840e075ff588a58e22c6586e2ae9a6f7922996ee6649a7f01072333afe4", "lcm-lora-sdv1-5.safetensors")  # fmt: skip
LIGHTNING = _file("loras", "ByteDance/SDXL-Lightning", "sdxl_lightning_4step_lora.safetensors",
                  "bf56cf2657efb15e465d81402ed481d1e11c4677e4bcce1bc11fe71ad8506b79")  # fmt: skip
DMD2 = _file("loras", "tianweiy/DMD2", "dmd2_sdxl_4step_lora_fp16.safetensors")
CANNY = _file("controlnet", "comfyanonymous/ControlNet-v1-1_fp16_safetensors", "control_v11p_sd15_canny_fp16.safetensors")
Z_TURBO = _file("diffusion_models", "Comfy-Org/z_image_turbo", "split_files/diffusion_models/z_image_turbo_bf16.safetensors",
                "2407613050b809ffdff18a4ac99af83ea6b95443ecebdf80e064a79c825574a6")  # fmt: skip
Z_IMAGE = _file("diffusion_models", "Comfy-Org/z_image", "split_files/diffusion_models/z_image_bf16.safetensors",
                "996a67d3ff666946b1c25cbc16d1b1918b6cc0ac166309e23fe3b3d830263dee")  # fmt: skip
QWEN3 = _file("text_encoders", "Comfy-Org/z_image_turbo", "split_files/text_encoders/qwen_3_4b.safetensors",
              "6c671498573ac2f7a5501502ccce8d2b08ea6ca2f661c458e708f36b36edfc5a")  # fmt: skip
AE = _file("vae", "Comfy-Org/z_image_turbo", "split_files/vae/ae.safetensors",
           "afc8e28272cd15db3919bacdb6918ce9c1ed22e96cb12c4d5ed0fba823529e38")  # fmt: skip
QWEN = _file("diffusion_models", "Comfy-Org/Qwen-Image_ComfyUI", "split_files/diffusion_models/qwen_image_fp8_e4m3fn.safetensors")
QWEN_EDIT = _file("diffusion_models", "Comfy-Org/Qwen-Image-Edit_ComfyUI",
                  "split_files/diffusion_models/qwen_image_edit_2509_fp8_e4m3fn.safetensors")  # fmt: skip
QWEN_TEXT = _file("text_encoders", "Comfy-Org/Qwen-Image_ComfyUI",
                  "split_files/text_encoders/qwen_2.5_vl_7b_fp8_scaled.safetensors",
                  "cb5636d852a0ea6a9075ab1bef496c0db7aef13c02350571e388aea959c5c0b4")  # fmt: skip
QWEN_VAE = _file("vae", "Comfy-Org/Qwen-Image_ComfyUI", "split_files/vae/qwen_image_vae.safetensors",
                 "a70580f0213e67967ee9c95f05bb400e8fb08307e017a924bf3441223e023d1f")  # fmt: skip
QWEN_8 = _file("loras", "lightx2v/Qwen-Image-Lightning", "Qwen-Image-Lightning-8steps-V1.0.safetensors")
QWEN_EDIT_4 = _file("loras", "lightx2v/Qwen-Image-Lightning",
                    "Qwen-Image-Edit-2509/Qwen-Image-Edit-2509-Lightning-4steps-V1.0-bf16.safetensors")  # fmt: skip
PICKSCORE, IMAGEREWARD, HPS = map(_oracle, ("PickScore_v1.safetensors", "ImageReward.pt", "HPS_v2.1_compressed.pt"))

MODELS = [value for value in dict(globals()).values() if isinstance(value, dict) and "directory" in value]
