"""Checkpoints with the names, shapes and nesting of ExCB's and DINO's releases, of random tensors.

And what such a network computes, written plainly in float64 from the tensors by their names in the
file. Nothing here imports the package, timm or torch.nn.
"""

import argparse
import math

import numpy as np
import torch

D, WIDTH = 256, 2048
HEADS = {192: 3, 384: 6, 768: 12}
MEAN = (0.485, 0.456, 0.406)


class Tensors:
    """Random tensors, drawn one after the other."""

    def __init__(self, seed):
        self._generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape, std=0.02, mean=0.0):
        return mean + std * torch.randn(*shape, generator=self._generator)

    def uniform(self, *shape, low=0.5, high=1.5):
        return low + (high - low) * torch.rand(*shape, generator=self._generator)

    def linear(self, name, n_in, n_out, std=None):
        std = n_in**-0.5 if std is None else std
        return {
            f"{name}.weight": self.normal(n_out, n_in, std=std),
            f"{name}.bias": self.normal(n_out, std=0.1),
        }

    def norm(self, name, size):
        return {
            f"{name}.weight": self.normal(size, std=0.1, mean=1.0),
            f"{name}.bias": self.normal(size, std=0.1),
        }

    def batch_norm(self, name, size):
        return self.norm(name, size) | {
            f"{name}.running_mean": self.normal(size, std=0.1),
            f"{name}.running_var": self.uniform(size),
            f"{name}.num_batches_tracked": torch.tensor(1000),
        }


def vit_backbone(draw, dim=384, patch=16, size=224, depth=12):
    """f of a ViT. Tokens are short, so that the epsilon of the first norm tells."""
    state = {
        "cls_token": draw.normal(1, 1, dim),
        "pos_embed": draw.normal(1, (size // patch) ** 2 + 1, dim),
        "patch_embed.proj.weight": draw.normal(dim, 3, patch, patch, std=0.0005),
        "patch_embed.proj.bias": draw.normal(dim, std=0.01),
    }
    for i in range(depth):
        block = f"blocks.{i}"
        state |= draw.norm(f"{block}.norm1", dim)
        state |= draw.linear(f"{block}.attn.qkv", dim, 3 * dim)
        state |= draw.linear(f"{block}.attn.proj", dim, dim, std=0.01)
        state |= draw.norm(f"{block}.norm2", dim)
        state |= draw.linear(f"{block}.mlp.fc1", dim, 4 * dim)
        state |= draw.linear(f"{block}.mlp.fc2", 4 * dim, dim, std=0.01)
    return state | draw.norm("norm", dim)


def resnet_backbone(draw, blocks=(3, 4, 6, 3), bottleneck=True):
    """f of a ResNet, of torchvision's names."""
    state = {"conv1.weight": draw.normal(64, 3, 7, 7, std=0.1)} | draw.batch_norm("bn1", 64)
    n_in = 64
    for stage, n_blocks in enumerate(blocks, start=1):
        width = 64 * 2 ** (stage - 1)
        n_out = 4 * width if bottleneck else width
        for i in range(n_blocks):
            block = f"layer{stage}.{i}"
            sides = ((1, n_in, width), (3, width, width), (1, width, n_out))
            sides = sides if bottleneck else ((3, n_in, width), (3, width, width))
            for j, (side, a, b) in enumerate(sides, start=1):
                std = (a * side * side) ** -0.5
                state[f"{block}.conv{j}.weight"] = draw.normal(b, a, side, side, std=std)
                state |= draw.batch_norm(f"{block}.bn{j}", b)
            if i == 0 and (stage > 1 or n_in != n_out):
                weight = draw.normal(n_out, n_in, 1, 1, std=n_in**-0.5)
                state[f"{block}.downsample.0.weight"] = weight
                state |= draw.batch_norm(f"{block}.downsample.1", n_out)
            n_in = n_out
    return state


def mlp(draw, name, n_in, widths, batch_norm):
    """Linear layers, BatchNorm or not, activations: numbered as in a Sequential."""
    state, at = {}, 0
    for i, width in enumerate(widths):
        state |= draw.linear(f"{name}.{at}", n_in, width)
        if batch_norm and i < len(widths) - 1:
            state |= draw.batch_norm(f"{name}.{at + 1}", width)
        at += 3 if batch_norm else 2
        n_in = width
    return state


def prefixed(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


def excb(arch, K=11, seed=0, width=WIDTH):
    """A checkpoint of ExCB; ``arch`` is "resnet50", "resnet18" or "vit_small"."""
    draw = Tensors(seed)
    batch_norm = arch.startswith("resnet")
    backbone, d = backbone_of(draw, arch)
    teacher = prefixed("backbone.", backbone)
    teacher |= mlp(draw, "classifier.projector.mlp", d, (width, width, D), batch_norm)
    teacher |= mlp(draw, "classifier.predictor.mlp", D, (width, D), batch_norm)
    teacher |= draw.batch_norm("classifier.predictor_activation", D)
    teacher |= {
        "classifier.centroid_layer.weight_g": torch.ones(K, 1),
        "classifier.centroid_layer.weight_v": draw.normal(K, D, std=1.0),
    }
    args = argparse.Namespace(
        backbone=arch,
        patch_size=16,
        num_clusters=K,
        mlp_bn=batch_norm,
        mlp_activation="relu" if batch_norm else "gelu",
        mlp_hidden_dim=width,
        mlp_hidden_layers=2,
        bottleneck_dim=D,
        predictor=True,
        predictor_activation="bn",
        crop_size=224,
        crop_resize=256,
        p_blur=[1.0, 0.1],
        checkpoint_path=None,
        epochs=400,
        lr=0.6,
        gpu=0,
        rank=0,
    )
    return {
        "student": dict(teacher),
        "teacher": teacher,
        "criterion": {"center": torch.full((1, K), 1 / K), "cluster_count": torch.zeros(K)},
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.6, "params": [0, 1]}]},
        "scaler": {"scale": 65536.0, "_growth_tracker": 3},
        "scheduler": {"current_step": 500},
        "args": args,
        "ks": 0,
        "train_step": 500,
        "epoch": 400,
    }


def dino(arch, K=11, seed=0, width=WIDTH, batch_norm=False, lengths=None):
    """A checkpoint of DINO; the rates in its optimizer are NumPy's, as its schedules are."""
    draw = Tensors(seed)
    backbone, d = backbone_of(draw, arch)
    teacher = prefixed("backbone.", backbone)
    teacher |= mlp(draw, "head.mlp", d, (width, width, D), batch_norm)
    teacher |= {
        "head.last_layer.weight_g": torch.ones(K, 1) if lengths is None else lengths[:, None],
        "head.last_layer.weight_v": draw.normal(K, D, std=1.0),
    }
    if arch.startswith("resnet"):  # it has BatchNorm, so the teacher was in DDP too
        teacher = prefixed("module.", teacher)
    student = teacher if arch.startswith("resnet") else prefixed("module.", teacher)
    args = argparse.Namespace(
        arch=arch,
        patch_size=16,
        out_dim=K,
        norm_last_layer=lengths is None,
        use_bn_in_head=batch_norm,
        global_crops_scale=(0.25, 1.0),
        epochs=800,
    )
    rates = np.linspace(0.1, 0.2, 3)
    return {
        "student": dict(student),
        "teacher": teacher,
        "optimizer": {
            "state": {},
            "param_groups": [{"lr": rates[1], "weight_decay": rates[2], "params": [0]}],
        },
        "epoch": 800,
        "args": args,
        "dino_loss": {"center": torch.zeros(1, K)},
        "fp16_scaler": {"scale": 65536.0},
    }


def backbone_of(draw, arch):
    """Tensors of f, and the number of its features."""
    if arch == "vit_small":
        return vit_backbone(draw), 384
    if arch == "resnet50":
        return resnet_backbone(draw), 2048
    assert arch == "resnet18"
    return resnet_backbone(draw, (2, 2, 2, 2), bottleneck=False), 512


# what it computes


def part(state, prefix):
    """Tensors of a part, in float64, by their names in it."""
    return {
        name.removeprefix(prefix): tensor.double()
        for name, tensor in state.items()
        if name.startswith(prefix)
    }


def normalised(pixels, std):
    """Images (n, c, h, w) of pixels in [0, 1], normalised, in float64."""
    mean, std = torch.tensor(MEAN).double(), torch.tensor(std).double()
    return (pixels.double() - mean[:, None, None]) / std[:, None, None]


def affine(p, name, x):
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def layer_norm(p, name, x):
    centred = x - x.mean(-1, keepdim=True)
    variance = (centred**2).mean(-1, keepdim=True)
    return centred / torch.sqrt(variance + 1e-6) * p[f"{name}.weight"] + p[f"{name}.bias"]


def gelu(x):
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def vit_features(p, images):
    """The class token after the last norm, of a ViT as DINO and ExCB have it."""
    weight = p["patch_embed.proj.weight"]  # (d, 3, patch, patch)
    d, patch, n = len(weight), weight.shape[-1], len(images)
    grid = images.shape[-1] // patch
    cells = images.reshape(n, 3, grid, patch, grid, patch).permute(0, 2, 4, 1, 3, 5)
    tokens = cells.reshape(n, grid * grid, -1) @ weight.reshape(d, -1).T
    tokens = tokens + p["patch_embed.proj.bias"]
    x = torch.cat([p["cls_token"].expand(n, 1, d), tokens], dim=1) + p["pos_embed"]
    depth = 1 + max(int(name.split(".")[1]) for name in p if name.startswith("blocks."))
    for i in range(depth):
        block = f"blocks.{i}"
        qkv = affine(p, f"{block}.attn.qkv", layer_norm(p, f"{block}.norm1", x))
        queries, keys, values = qkv.split(d, dim=-1)
        of_heads = []
        for h in range(HEADS[d]):
            mine = slice(h * d // HEADS[d], (h + 1) * d // HEADS[d])
            scores = queries[..., mine] @ keys[..., mine].mT / math.sqrt(d // HEADS[d])
            of_heads.append(torch.softmax(scores, dim=-1) @ values[..., mine])
        x = x + affine(p, f"{block}.attn.proj", torch.cat(of_heads, dim=-1))
        hidden = gelu(affine(p, f"{block}.mlp.fc1", layer_norm(p, f"{block}.norm2", x)))
        x = x + affine(p, f"{block}.mlp.fc2", hidden)
    return layer_norm(p, "norm", x)[:, 0]


def resnet_features(state, images, arch):
    """torchvision's ResNet of that name, without its classifier, in float64."""
    from torchvision import models

    model = models.get_model(arch, weights=None)
    model.fc = torch.nn.Identity()
    model.load_state_dict(state)
    with torch.no_grad():
        return model.double().eval()(images)


def head(p, x, activation):
    """Raw projections of features: linear layers, and BatchNorm by running statistics."""
    numbers = sorted({int(name.split(".")[0]) for name in p})
    last = numbers[-1]
    for i in numbers:
        if f"{i}.running_mean" in p:
            variance = p[f"{i}.running_var"] + 1e-5
            x = (x - p[f"{i}.running_mean"]) / torch.sqrt(variance)
            x = x * p[f"{i}.weight"] + p[f"{i}.bias"]
        else:
            x = affine(p, str(i), x)
        if i != last and f"{i + 1}.weight" not in p:
            x = activation(x)
    return x


def unit(x):
    return x / (x**2).sum(-1, keepdim=True).sqrt()
