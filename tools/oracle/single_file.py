"""What diffusers makes of checkpoints in one file, and of parts in files of their own -> tests/fixtures/single_file.json and
single_file.safetensors.

The weights are not stored: names, types and shapes are, and a rule (`numbers`) that the test knows too. Names and layouts are
the original ones; diffusers' own converters, the gguf package and PyTorch's fp8 say what they mean.
"""

import json
import math
import re

import gguf
import numpy as np
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from diffusers.loaders.single_file_utils import (
    convert_ldm_vae_checkpoint,
    convert_sd3_t5_checkpoint_to_diffusers,
    convert_sd3_transformer_checkpoint_to_diffusers,
)
from gguf import GGMLQuantizationType as Kind
from gguf import quants
from safetensors.torch import save_file
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from common import FIXTURES, ROOT, generator, hashed, quiet, randn, uniform

D, LAYERS, DUAL, CHANNELS, TABLE = 64, 3, (0, 1), 16, 8
L, G, G_PROJECTION, JOINT = 64, 128, 96, 192
T5_INNER, T5_HEADS, VOCAB, T5_VOCAB = 256, 3, 569, 118
PROMPTS = ["a red circle and two blue squares"]
STEPS, GUIDANCE, SEQUENCE = 3, 4.5, 12


PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
HALVES = {"Q4_1": 2, "Q5_1": 2, "Q4_K": 2, "Q5_K": 2, "Q2_K": 2}
WHERE = {"Q2_K": 80, "Q3_K": 108, "Q6_K": 208}


def block_bytes(name, kind, elements, scale):
    """Random blocks whose scale and, if they have one, minimum are `scale` and `-8·scale` or as much as centres them."""
    per, size = gguf.GGML_QUANT_SIZES[Kind[kind]]
    data = (hashed(name, elements // per * size) >> 24).astype(np.uint8).reshape(-1, size)
    # What is added in the formats with a plain minimum, and taken away in those with scaled ones.
    minimum = {"Q4_1": -7.5, "Q5_1": -15.5}.get(kind, 7.5 if kind in ("Q4_K", "Q2_K") else 15.5)
    numbers = [scale] if kind not in HALVES else [scale, np.float32(scale) * np.float32(minimum)]
    at = WHERE.get(kind, 0)
    data[:, at : at + 2 * len(numbers)] = np.array(numbers, np.float16).view(np.uint8)
    return data.reshape(-1)


def numbers(t):
    """The tensor that an entry of the listing stands for, in single precision."""
    elements = math.prod(t["shape"])
    if t["dtype"] in PLAIN:
        values = np.float32(t["mean"]) + np.float32(t["gain"]) * uniform(t["name"], elements)
        return torch.from_numpy(values).to(PLAIN[t["dtype"]]).float().view(t["shape"])
    if t["dtype"] == "F8_E4M3":
        codes = (hashed(t["name"], elements) >> 24).astype(np.uint8) & 0x9F
        return torch.from_numpy(codes).view(torch.float8_e4m3fn).float().view(t["shape"])
    data = block_bytes(t["name"], t["dtype"], elements, t["gain"])
    return torch.from_numpy(quants.dequantize(data, Kind[t["dtype"]]).copy()).view(t["shape"])


def transformer():
    """Names and shapes of Stability's SD3.5."""
    shapes = {"pos_embed": [1, TABLE * TABLE, D]}

    def linear(name, out, inputs):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = [out, inputs], [out]

    linear("x_embedder.proj", D, 0)
    shapes["x_embedder.proj.weight"] = [D, CHANNELS, 2, 2]
    linear("context_embedder", D, JOINT)
    for name, inputs in (("t_embedder", 256), ("y_embedder", L + G_PROJECTION)):
        linear(f"{name}.mlp.0", D, inputs)
        linear(f"{name}.mlp.2", D, D)
    for i in range(LAYERS):
        last = i == LAYERS - 1
        for stream in ("x", "context"):
            block = f"joint_blocks.{i}.{stream}_block"
            dual = stream == "x" and i in DUAL
            for attention in ("attn", "attn2") if dual else ("attn",):
                linear(f"{block}.{attention}.qkv", 3 * D, D)
                for norm in ("ln_q", "ln_k"):
                    shapes[f"{block}.{attention}.{norm}.weight"] = [64]
                if not (last and stream == "context"):
                    linear(f"{block}.{attention}.proj", D, D)
            chunks = 2 if last and stream == "context" else 9 if dual else 6
            linear(f"{block}.adaLN_modulation.1", chunks * D, D)
            if not (last and stream == "context"):
                linear(f"{block}.mlp.fc1", 4 * D, D)
                linear(f"{block}.mlp.fc2", D, 4 * D)
    linear("final_layer.adaLN_modulation.1", 2 * D, D)
    linear("final_layer.linear", 4 * CHANNELS, D)
    return shapes


def vae():
    """Names and shapes of CompVis' autoencoder with two levels."""
    shapes, levels = {}, [32, 64]

    def conv(name, out, inputs, size=3):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = [out, inputs, size, size], [out]

    def norm(name, channels):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = [channels], [channels]

    def block(name, inputs, out):
        norm(f"{name}.norm1", inputs)
        conv(f"{name}.conv1", out, inputs)
        norm(f"{name}.norm2", out)
        conv(f"{name}.conv2", out, out)
        if inputs != out:
            conv(f"{name}.nin_shortcut", out, inputs, 1)

    def middle(name):
        block(f"{name}.mid.block_1", 64, 64)
        norm(f"{name}.mid.attn_1.norm", 64)
        for part in ("q", "k", "v", "proj_out"):
            conv(f"{name}.mid.attn_1.{part}", 64, 64, 1)
        block(f"{name}.mid.block_2", 64, 64)

    conv("encoder.conv_in", 32, 3)
    block("encoder.down.0.block.0", 32, 32)
    conv("encoder.down.0.downsample.conv", 32, 32)
    block("encoder.down.1.block.0", 32, 64)
    middle("encoder")
    norm("encoder.norm_out", 64)
    conv("encoder.conv_out", 2 * CHANNELS, 64)
    conv("decoder.conv_in", 64, CHANNELS)
    middle("decoder")
    for i in range(2):
        block(f"decoder.up.1.block.{i}", 64, 64)
    conv("decoder.up.1.upsample.conv", 64, 64)
    for i in range(2):
        block(f"decoder.up.0.block.{i}", 64 if i == 0 else 32, 32)
    norm("decoder.norm_out", 32)
    conv("decoder.conv_out", 3, 32)
    assert levels == [32, 64]
    return shapes


def clip_config(width, projection, act):
    return CLIPTextConfig(
        vocab_size=VOCAB, hidden_size=width, intermediate_size=4 * width, projection_dim=projection,
        num_hidden_layers=2, num_attention_heads=width // 64, max_position_embeddings=16, hidden_act=act,
        bos_token_id=VOCAB - 2, eos_token_id=2, pad_token_id=1)


def t5_config():
    return T5Config(vocab_size=T5_VOCAB, d_model=JOINT, d_kv=64, d_ff=T5_INNER, num_layers=2, num_heads=T5_HEADS,
                    feed_forward_proj="gated-gelu")


def shapes_of(model):
    return {name: list(t.shape) for name, t in model.state_dict().items()}


def entry(name, shape, dtype):
    mean, gain = 0.0, 0.2
    if re.search(r"(norm\w*|norm\d|ln_[qk])\.weight$", name):
        mean, gain = 1.0, 0.3
    elif len(shape) > 1:
        fan_in = math.prod(shape[1:])
        gain = 0.7 if re.search("embed|shared|pos_", name) and "embedder" not in name else math.sqrt(3 / fan_in)
    t = dict(name=name, dtype=dtype, shape=shape, mean=mean, gain=float(np.float16(gain)))
    if dtype not in PLAIN and dtype != "F8_E4M3":
        # The scale that gives the numbers the spread of the others.
        spread = numbers(t | dict(gain=1.0)).std().item()
        t["gain"] = float(np.float16(gain / math.sqrt(3) / spread))
    return t


def scaled(t):
    """`t` in fp8 and the factor beside it, as ComfyUI stores them."""
    t = t | dict(dtype="F8_E4M3")
    factor = t["gain"] / math.sqrt(3) / numbers(t).std().item()
    name = t["name"].removesuffix(".weight") + ".scale_weight"
    return [t, dict(name=name, dtype="F32", shape=[], mean=float(np.float32(factor)), gain=0.0)]


def is_matrix(t):
    return len(t["shape"]) == 2 and t["name"].endswith(".weight")


def everything():
    """One file: the usual 16 bits, T5 in fp8 with factors."""
    listing = [entry(f"model.diffusion_model.{name}", shape, "F16") for name, shape in transformer().items()]
    listing += [entry(f"first_stage_model.{name}", shape, "F16") for name, shape in vae().items()]
    for prefix, config in (("clip_l", clip_config(L, L, "quick_gelu")), ("clip_g", clip_config(G, G_PROJECTION, "gelu"))):
        for name, shape in shapes_of(CLIPTextModelWithProjection(config)).items():
            listing.append(entry(f"text_encoders.{prefix}.transformer.{name}", shape, "F16"))
    for name, shape in shapes_of(T5EncoderModel(t5_config())).items():
        if name == "encoder.embed_tokens.weight":
            continue
        t = entry(f"text_encoders.t5xxl.transformer.{name}", shape, "F16")
        quantised = is_matrix(t) and re.search("SelfAttention.[qkvo]|Dense", name)
        listing += scaled(t) if quantised else [t]
    listing.append(dict(name="text_encoders.t5xxl.transformer.scaled_fp8", dtype="F8_E4M3", shape=[0], mean=0, gain=0))
    return {"checkpoint.safetensors": listing}


WIDE = ["Q4_K", "Q6_K", "Q5_K", "Q3_K", "Q2_K", "IQ4_XS"]
NARROW = ["Q8_0", "Q5_1", "Q4_0", "Q4_1", "Q5_0", "IQ4_NL"]


def quantised(shapes):
    """The types that quantising tools choose: blocks for matrices, all of them in turn."""
    listing, turn = [], [0, 0]
    for name, shape in shapes.items():
        if len(shape) != 2 or "rel_b" in name:
            listing.append(entry(name, shape, "F16" if len(shape) == 4 else "F32"))
            continue
        wide = shape[1] % 256 == 0
        kind = (WIDE if wide else NARROW)[turn[wide] % 6]
        turn[wide] += 1
        listing.append(entry(name, shape, kind))
    return listing


def parts():
    """Files of their own: GGUF for the transformer and T5, the rest in safetensors."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.T5ENCODER, 2)
    t5 = {}
    for name, shape in shapes_of(T5EncoderModel(t5_config())).items():
        if name != "encoder.embed_tokens.weight":
            t5[names.get_name(name, try_suffixes=(".weight",))] = shape
    listings = {"transformer.gguf": quantised(transformer()), "t5xxl-Q4_K_M.gguf": quantised(t5)}
    listings["sd3_vae.safetensors"] = [entry(name, shape, "F32") for name, shape in vae().items()]
    l, g = (shapes_of(CLIPTextModelWithProjection(c)) for c in
            (clip_config(L, L, "quick_gelu"), clip_config(G, G_PROJECTION, "gelu")))
    # Some versions of transformers leave out the first part of the names; ComfyUI's file has a number for images.
    listings["clip_l.safetensors"] = [entry(name.removeprefix("text_model."), shape, "BF16") for name, shape in l.items()]
    listings["clip_l.safetensors"].append(dict(name="logit_scale", dtype="F32", shape=[], mean=4.6, gain=0.0))
    listings["clip_g.safetensors"] = []
    for name, shape in g.items():
        t = entry(name, shape, "F16")
        fp8 = is_matrix(t) and "mlp" in name
        listings["clip_g.safetensors"].append(t | dict(dtype="F8_E4M3") if fp8 else t)
    named = {hf: names.get_name(hf, try_suffixes=(".weight",)) for hf in shapes_of(T5EncoderModel(t5_config()))}
    return listings, named | {"encoder.embed_tokens.weight": named["shared.weight"]}


def values(listing):
    tensors = {t["name"]: numbers(t) for t in listing}
    for name in [n for n in tensors if n.endswith(".scale_weight")]:
        tensors[name.removesuffix("scale_weight") + "weight"] *= tensors.pop(name)
    return {name: t for name, t in tensors.items() if not name.endswith("scaled_fp8")}


def load(model, state):
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"encoder.embed_tokens.weight"}, (missing, unexpected)
    return model.eval()


@torch.no_grad()
def run(t, v, l, g, t5, rounding, halves=None):
    """The pipeline on tensors under the original names, or those of transformers for the encoders; what `halves` names is computed
    in the types that it has."""
    network = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=CHANNELS, out_channels=CHANNELS, num_layers=LAYERS,
        attention_head_dim=64, num_attention_heads=1, joint_attention_dim=JOINT, caption_projection_dim=D,
        pooled_projection_dim=L + G_PROJECTION, pos_embed_max_size=TABLE, dual_attention_layers=DUAL, qk_norm="rms_norm")
    load(network, convert_sd3_transformer_checkpoint_to_diffusers(dict(t)))
    settings = dict(
        latent_channels=CHANNELS, block_out_channels=(32, 64), layers_per_block=1, norm_num_groups=32,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, use_quant_conv=False,
        use_post_quant_conv=False, scaling_factor=1.5305, shift_factor=0.0609)
    autoencoder = AutoencoderKL(**settings)
    load(autoencoder, convert_ldm_vae_checkpoint(dict(v), dict(autoencoder.config)))
    # As diffusers has it for the first encoder of a single file, whatever the file has.
    l = l | {"text_projection.weight": torch.eye(L)}
    tokenizers = [AutoTokenizer.from_pretrained(ROOT / "models/tiny-sd3" / name)
                  for name in ("tokenizer", "tokenizer_2", "tokenizer_3")]
    pipe = StableDiffusion3Pipeline(
        transformer=network, vae=autoencoder, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder=load(CLIPTextModelWithProjection(clip_config(L, L, "quick_gelu")), l), tokenizer=tokenizers[0],
        text_encoder_2=load(CLIPTextModelWithProjection(clip_config(G, G_PROJECTION, "gelu")), g),
        tokenizer_2=tokenizers[1], text_encoder_3=load(T5EncoderModel(t5_config()), t5), tokenizer_3=tokenizers[2])
    pipe.set_progress_bar_config(disable=True)
    pipe.tokenizer_max_length = tokenizers[0].model_max_length
    for name, dtype in (halves or {}).items():
        component = getattr(pipe, name).to(dtype)
        for part, module in component.named_modules():
            # As transformers loads T5.
            if name == "text_encoder_3" and dtype == torch.float16 and part.endswith(".wo"):
                module.float()
    kept = network.dtype
    noise = randn(generator("single_file/noise"), 1, CHANNELS, 8, 8)
    e, n, p, q = pipe.encode_prompt(PROMPTS, None, None, do_classifier_free_guidance=True, negative_prompt=[""],
                                    max_sequence_length=SEQUENCE)
    e, n, p, q = (x.to(rounding).float() for x in (e, n, p, q))
    call = dict(prompt_embeds=e.to(kept), negative_prompt_embeds=n.to(kept), pooled_prompt_embeds=p.to(kept),
                negative_pooled_prompt_embeds=q.to(kept), latents=noise.to(kept, copy=True), height=16, width=16, guidance_scale=GUIDANCE, num_inference_steps=STEPS)
    latents = pipe(**call, output_type="latent").images
    image = autoencoder.decode((latents / 1.5305 + 0.0609).to(autoencoder.dtype)).sample
    return dict(noise=noise, prompt_embeds=e, pooled_prompt_embeds=p, latents=latents.float(),
                image=image.permute(0, 2, 3, 1).float())


def errors(case, got, io):
    """How far `got` is from the case in single precision."""
    error = lambda a, b: float((a - b).abs().max() / b.abs().max())
    return {key: error(got[key], io[f"{case}.{key}"]) for key in got if key != "noise"}


def under(tensors, prefix):
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def main():
    quiet()
    whole = everything()
    tensors = values(whole["checkpoint.safetensors"])
    encoders = [under(tensors, f"text_encoders.{n}.transformer.") for n in ("clip_l", "clip_g")]
    t5 = convert_sd3_t5_checkpoint_to_diffusers(tensors)
    t5["encoder.embed_tokens.weight"] = t5["shared.weight"]
    prefix = "model.diffusion_model."
    own = {name: t for name, t in tensors.items() if name.startswith(prefix)}
    v = {k: v for k, v in tensors.items() if k.startswith("first_stage_model.")}
    everywhere = lambda dtype: dict.fromkeys(
        ("transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3"), dtype)
    io = {f"whole.{k}": x for k, x in run(own, v, *encoders, t5, torch.float16).items()}
    # What is in blocks is computed in bf16.
    types = everywhere(torch.float16) | {"text_encoder_3": torch.bfloat16}
    halves = {"whole": errors("whole", run(own, v, *encoders, t5, torch.float16, types), io)}

    apart, names = parts()
    files = {file: values(listing) for file, listing in apart.items()}
    t5 = {hf: files["t5xxl-Q4_K_M.gguf"][name] for hf, name in names.items()}
    l = files["clip_l.safetensors"]
    l = {name if name.startswith("text_projection") else f"text_model.{name}": t for name, t in l.items() if name != "logit_scale"}
    v = {f"first_stage_model.{name}": t for name, t in files["sd3_vae.safetensors"].items()}
    tensors = files["transformer.gguf"], v, l, files["clip_g.safetensors"], t5, torch.float32
    io |= {f"parts.{k}": x for k, x in run(*tensors).items()}
    types = everywhere(torch.bfloat16) | {"text_encoder_2": torch.float16, "vae": torch.float32}
    halves["parts"] = errors("parts", run(*tensors, types), io)
    # What processors with instructions for bf16 use them for.
    halves["parts on a cpu"] = errors("parts", run(*tensors, {"text_encoder": torch.bfloat16}), io)
    (FIXTURES / "single_file_halves.json").write_text(json.dumps(halves, indent=1) + "\n")
    save_file({name: t.contiguous() for name, t in io.items()}, FIXTURES / "single_file.safetensors")
    listings = dict(whole=whole, parts=apart, prompts=PROMPTS, steps=STEPS, guidance=GUIDANCE, sequence=SEQUENCE)
    lines = json.dumps(listings).replace('{"name"', '\n{"name"')
    (FIXTURES / "single_file.json").write_text(lines + "\n")


if __name__ == "__main__":
    main()
