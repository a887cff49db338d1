"""LoRAs of every kind people have, on `pipeline/no_t5` -> tests/fixtures/lora_kinds.

One file or folder per kind, and in `io.safetensors` what the pipeline gives with it. Where diffusers reads the kind,
`load_lora_weights` or PEFT does; the original's names, which it reads for other models only, go through its own
conversion of an SD3 checkpoint, as differences of weights.
"""

import json

import torch
import transformers.integrations.peft
from diffusers import StableDiffusion3Pipeline
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers
from diffusers.training_utils import _collate_lora_metadata
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import save_file

from common import FIXTURES, case_dir, generator, quiet, randn, save_io
from pipeline import PROMPTS, load

# transformers 5.23 asks for a PEFT that is not published yet; for a LoRA this one does.
transformers.integrations.peft.check_peft_version = lambda **_: None

FOLDER = FIXTURES / "lora_kinds"
ENCODERS = ("text_encoder", "text_encoder_2")
ATTENTION = ["attn.to_q", "attn.to_out.0", "attn2.to_v", "attn.add_k_proj"]
EVERYTHING = ATTENTION + [
    "attn.to_k", "attn.to_v", "attn2.to_q", "attn2.to_k", "attn2.to_out.0", "attn.add_q_proj", "attn.add_v_proj",
    "attn.to_add_out", "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2", "norm1.linear",
    "norm1_context.linear", "norm_out.linear", "proj_out", "context_embedder", "timestep_embedder.linear_1",
    "timestep_embedder.linear_2", "text_embedder.linear_1", "text_embedder.linear_2"]
CLIP = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]


def inputs():
    g = generator("lora_kinds/inputs")
    return dict(x=randn(g, 2, 16, 4, 6), timestep=torch.tensor([250.0, 800.0]),
                prompt_embeds=randn(g, 2, 5, 48), pooled_prompt_embeds=randn(g, 2, 32))


def velocity(transformer):
    i = inputs()
    return transformer(hidden_states=i["x"], timestep=i["timestep"], encoder_hidden_states=i["prompt_embeds"],
                       pooled_projections=i["pooled_prompt_embeds"]).sample


def outputs(pipe):
    e, _, p, _ = pipe.encode_prompt(PROMPTS, None, None, do_classifier_free_guidance=False, max_sequence_length=1)
    return dict(velocity=velocity(pipe.transformer), prompt_embeds=e, pooled_prompt_embeds=p)


def factor(g, name, shape):
    return randn(g, *shape, std=shape[1] ** -0.5 if "lora_A" in name or "down" in name else 0.1)


def attach(model, config, name):
    model.add_adapter(config)
    g = generator(f"lora_kinds/{name}")
    for key, p in model.named_parameters():
        if "lora_" in key:
            p.copy_(factor(g, key, p.shape))


def plain(config):
    """Settings in an order that does not differ from run to run."""
    return {k: sorted(v) if isinstance(v, (set, frozenset)) else v for k, v in config.items()}


def diffusers(name, configs, dtype=torch.float32, metadata=True):
    """What `save_lora_weights` writes, with or without PEFT's settings in the header."""
    pipe, d = load(), FOLDER / name
    for component, config in configs.items():
        attach(getattr(pipe, component), config, f"{name}/{component}")
    layers = {f"{c}_lora_layers": {k: v.to(dtype) for k, v in get_peft_model_state_dict(getattr(pipe, c)).items()}
              for c in configs}
    settings = {}
    if metadata:
        settings = _collate_lora_metadata({c: getattr(pipe, c) for c in configs})
        settings = {k: plain(v) for k, v in settings.items()}
    StableDiffusion3Pipeline.save_lora_weights(d, **layers, **settings)
    fresh = load()
    fresh.load_lora_weights(d)
    return outputs(fresh)


def with_alphas(name, dtype):
    """diffusers' names with a tensor `alpha` per layer, which its loader for SD3 refuses: PEFT with the same numbers."""
    pipe, g = load(), generator(f"lora_kinds/{name}")
    config = LoraConfig(r=2, lora_alpha=3, target_modules=ATTENTION, alpha_pattern={"attn.to_q": 5.0})
    attach(pipe.transformer, config, name)
    tensors = {f"transformer.{k}": v.to(dtype) for k, v in get_peft_model_state_dict(pipe.transformer).items()}
    for key in [k for k in tensors if "lora_A" in k]:
        tensors[key.replace("lora_A.weight", "alpha")] = torch.tensor(5.0 if "attn.to_q" in key else 3.0, dtype=dtype)
    save_file(tensors, FOLDER / f"{name}.safetensors")
    return dict(velocity=velocity(pipe.transformer))


def peft_folder(name):
    """What PEFT saves by itself. The first pattern that matches counts, in the order they were written in."""
    model = load().transformer
    patterns = dict(
        rank_pattern={r"transformer_blocks\.1\.attn\.to_(q|out\.0)": 4, "attn.to_q": 3, "^attn.add_k_proj": 7},
        alpha_pattern={"to_q": 16, "attn.to_q": 2, "^transformer_blocks.0.*add_k_proj": 1, "add_k_proj": 9})
    config = LoraConfig(r=2, lora_alpha=4, target_modules=ATTENTION, **patterns)
    peft, g = get_peft_model(model, config), generator(f"lora_kinds/{name}")
    for key, p in peft.named_parameters():
        if "lora_" in key:
            p.copy_(factor(g, key, p.shape))
    peft.save_pretrained(FOLDER / name)
    (FOLDER / name / "README.md").unlink()
    path = FOLDER / name / "adapter_config.json"
    config = json.loads(path.read_text())
    config["target_modules"] = sorted(config["target_modules"])
    # PEFT sorts what it writes, but keeps the order of what it reads: other programs and people write their own.
    path.write_text(json.dumps(config | patterns, indent=1) + "\n")
    return dict(velocity=velocity(PeftModel.from_pretrained(load().transformer, FOLDER / name)))


def original_shapes():
    """Every matrix of the original's checkpoint of the pipeline's transformer: `[outputs, inputs]` by name."""
    d, shapes = 32, {}
    for i in range(2):
        last = i == 1
        x, c = f"joint_blocks.{i}.x_block.", f"joint_blocks.{i}.context_block."
        shapes |= {x + "attn.qkv": (3 * d, d), x + "attn.proj": (d, d), c + "attn.qkv": (3 * d, d),
                   x + "mlp.fc1": (4 * d, d), x + "mlp.fc2": (d, 4 * d),
                   x + "adaLN_modulation.1": ((6 if last else 9) * d, d),
                   c + "adaLN_modulation.1": ((2 if last else 6) * d, d)}
        if not last:
            shapes |= {c + "attn.proj": (d, d), c + "mlp.fc1": (4 * d, d), c + "mlp.fc2": (d, 4 * d),
                       x + "attn2.qkv": (3 * d, d), x + "attn2.proj": (d, d)}
    return shapes | {
        "t_embedder.mlp.0": (d, 256), "t_embedder.mlp.2": (d, d), "y_embedder.mlp.0": (d, 32),
        "y_embedder.mlp.2": (d, d), "context_embedder": (d, 48), "final_layer.linear": (64, d),
        "final_layer.adaLN_modulation.1": (2 * d, d)}


def original(name, layers, naming, dtype, alpha=None, encoders=None):
    """The original's names: `naming` gives the three of a layer."""
    pipe, g, shapes, tensors = load(), generator(f"lora_kinds/{name}"), original_shapes(), {}

    def add(key, outputs, inputs, rank=2):
        down, up, scale = naming(key)
        a, b = (factor(g, w, s).to(dtype) for w, s in (("lora_A", (rank, inputs)), ("lora_B", (outputs, rank))))
        tensors[down], tensors[up] = a, b
        if alpha:
            tensors[scale] = torch.tensor(alpha, dtype=dtype)
        return (alpha or rank) / rank * (b.double() @ a.double())

    checkpoint = {"pos_embed": torch.zeros(1), "x_embedder.proj.weight": torch.zeros(1),
                  "x_embedder.proj.bias": torch.zeros(1)}
    for key, (n, m) in shapes.items():
        delta = add(key, n, m) if layers is None or any(key.endswith(end) for end in layers) else torch.zeros(n, m)
        checkpoint |= {f"{key}.weight": delta, f"{key}.bias": torch.zeros(n)}
    state = pipe.transformer.state_dict()
    for key, delta in convert_sd3_transformer_checkpoint_to_diffusers(checkpoint).items():
        if key.endswith(".weight") and not key.startswith("pos_embed"):
            state[key].copy_(state[key].double() + delta)
    for component, prefix in (encoders or {}).items():
        model = getattr(pipe, component)
        for key, layer in model.named_modules():
            if key.split(".")[-1] in CLIP:
                # sd-scripts' names are those of the published checkpoints.
                published = key if key.startswith("text_model.") else f"text_model.{key}"
                delta = add((prefix, published), *layer.weight.shape)
                layer.weight.copy_(layer.weight.double() + delta)
    save_file(tensors, FOLDER / f"{name}.safetensors")
    return outputs(pipe) if encoders else dict(velocity=velocity(pipe.transformer))


def sd_scripts(key):
    prefix, key = key if isinstance(key, tuple) else ("lora_unet", key)
    key = f"{prefix}_{key.replace('.', '_')}"
    return f"{key}.lora_down.weight", f"{key}.lora_up.weight", f"{key}.alpha"


def comfy(key):
    return tuple(f"diffusion_model.{key}.{end}" for end in ("lora_A.weight", "lora_B.weight", "alpha"))


def comfy_old(key):
    return tuple(f"model.diffusion_model.{key}.{end}" for end in ("lora_down.weight", "lora_up.weight", "alpha"))


@torch.no_grad()
def main():
    quiet()
    case_dir("lora_kinds")
    patterns = dict(
        rank_pattern={"attn.to_q": 3, r"^transformer_blocks\.1\.ff.*": 1, r"ff\.net\.(0\.proj|2)": 4},
        alpha_pattern={"^proj_out": 7.0, "attn2?.to_[kv]": 5.0, "to_v": 100.0, "net.2": 0.5})
    kinds = {
        "diffusers": diffusers("diffusers", dict(
            transformer=LoraConfig(r=2, lora_alpha=3, target_modules=EVERYTHING, **patterns),
            text_encoder=LoraConfig(r=2, lora_alpha=8, target_modules=CLIP),
            text_encoder_2=LoraConfig(r=3, lora_alpha=1, target_modules=CLIP, alpha_pattern={"layers.1.mlp.fc1": 6}))),
        "no_settings_f16": diffusers("no_settings_f16", dict(
            transformer=LoraConfig(r=3, target_modules=ATTENTION, rank_pattern={"attn.to_q": 1}),
            text_encoder=LoraConfig(r=2, target_modules=["q_proj", "fc1"])), torch.float16, metadata=False),
        "rslora_bf16": diffusers("rslora_bf16", dict(
            transformer=LoraConfig(r=3, lora_alpha=5, use_rslora=True, target_modules=ATTENTION,
                                   rank_pattern={"attn.to_q": 2}, alpha_pattern={"attn.to_out.0": 2}),
            text_encoder_2=LoraConfig(r=2, lora_alpha=2, use_rslora=True, target_modules=CLIP)), torch.bfloat16),
        "alphas_f64": with_alphas("alphas_f64", torch.float64),
        "peft_folder": peft_folder("peft_folder"),
        "sd_scripts_f16": original("sd_scripts_f16", None, sd_scripts, torch.float16, alpha=1.0,
                                   encoders=dict(text_encoder="lora_te1", text_encoder_2="lora_te2")),
        "comfy_bf16": original("comfy_bf16", ["qkv", "proj", "fc1", "adaLN_modulation.1"], comfy, torch.bfloat16),
        "comfy_old_f32": original("comfy_old_f32", ["attn.qkv", "linear"], comfy_old, torch.float32, alpha=3.0),
    }
    base = outputs(load())
    io = inputs() | {f"base.{k}": v for k, v in base.items()}
    for kind, made in kinds.items():
        io |= {f"{kind}.{k}": v for k, v in made.items()}
        print(kind, {k: float((v - base[k]).norm() / base[k].norm()) for k, v in made.items()})
    save_io(FOLDER, io)
    for path in sorted(FOLDER.rglob("*.safetensors")):
        with safe_open(path, "pt") as f:
            print(path.relative_to(FOLDER), path.stat().st_size, len(f.keys()), *sorted(f.keys())[:3])


if __name__ == "__main__":
    main()
