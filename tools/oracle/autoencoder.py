"""AutoencoderKL at tiny sizes -> tests/fixtures/autoencoder/*."""

import torch
from diffusers import AutoencoderKL

from common import case_dir, generator, quiet, randn, randomize, save_io

CASES = {
    # SD3: 16 latent channels, no 1x1 convolutions around the latent.
    "vae16": dict(latent_channels=16, block_out_channels=(8, 8, 16, 16), layers_per_block=1, norm_num_groups=4,
                  use_quant_conv=False, use_post_quant_conv=False, scaling_factor=1.5305, shift_factor=0.0609),
    # SD1/SDXL: 4 latent channels, both 1x1 convolutions, no shift.
    "vae4": dict(latent_channels=4, block_out_channels=(4, 8), layers_per_block=2, norm_num_groups=4,
                 use_quant_conv=True, use_post_quant_conv=True, scaling_factor=0.13025, shift_factor=None),
}


def build(name):
    c = CASES[name]
    n = len(c["block_out_channels"])
    model = AutoencoderKL(
        in_channels=3, out_channels=3, down_block_types=("DownEncoderBlock2D",) * n,
        up_block_types=("UpDecoderBlock2D",) * n, sample_size=32, force_upcast=True, **c,
    )
    return randomize(model, "autoencoder/" + name, gains=[("to_q.weight", 2.0), ("to_k.weight", 2.0)])


def gradients(model, g, latent):
    """Of the sum of products of the pictures with random numbers, with respect to the latent."""
    latent = latent.double().requires_grad_()
    decoded = model.double().decode(latent).sample
    d = randn(g, *decoded.shape)
    (gradient,) = torch.autograd.grad((decoded * d).sum(), latent)
    return dict(ddecoded=d, dlatent=gradient.float())


def main():
    quiet()
    for name, c in CASES.items():
        model, d = build(name), case_dir("autoencoder", name)
        model.save_pretrained(d)
        g = generator("autoencoder/io/" + name)
        f = 2 ** (len(c["block_out_channels"]) - 1)
        latent = randn(g, 2, c["latent_channels"], 4, 6)
        image = torch.rand(2, 3, 4 * f, 3 * f, generator=g) * 2 - 1
        with torch.no_grad():
            dist = model.encode(image).latent_dist
            io = dict(latent=latent, decoded=model.decode(latent).sample, image=image,
                      moments_mean=dist.mode(), moments_logvar=dist.logvar)
        save_io(d, {**io, **gradients(model, g, latent)})


if __name__ == "__main__":
    main()
