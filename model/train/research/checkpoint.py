"""Writes and reads a model folder: config.json and weights.safetensors as `peregrine export` takes them.

The tensors' names and orientations are those of the public research code's state dict, so that checkpoints of either
trainer go in and out the same way.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from data import write_json
from model import Hstu

DEFAULTS = {"layerNormEps": 1e-6, "outputNormEps": 1e-6}


def complete(config):
    """The config with what follows from it: the divisor, the epsilons."""
    return DEFAULTS | config | {"divisor": config["maxSequenceLen"] + config["maxOutputLen"]}


def to_state_dict(model):
    """Float32 tensors on the CPU under the published names."""
    named = {
        "_embedding_module._item_emb.weight": model.items,
        "_input_features_preproc._pos_emb.weight": model.positions,
    }
    for i, layer in enumerate(model.layers):
        at = f"_hstu._attention_layers.{i}"
        # By j - i + N - 1 there: distance 0 stands at N - 1, and the future, which nobody reads, behind it.
        past = layer.pos_w.flip(0)
        named |= {
            f"{at}._uvqk": layer.uvqk,
            f"{at}._o.weight": layer.out.weight,
            f"{at}._o.bias": layer.out.bias,
            f"{at}._rel_attn_bias._pos_w": torch.cat([past, past.new_zeros(len(past) - 1)]),
            f"{at}._rel_attn_bias._ts_w": layer.time_w,
        }
    return {name: tensor.detach().float().cpu().contiguous() for name, tensor in named.items()}


@torch.no_grad()
def from_state_dict(model, tensors):
    """Fills the model from tensors under the published names."""
    model.items.copy_(tensors["_embedding_module._item_emb.weight"])
    model.positions.copy_(tensors["_input_features_preproc._pos_emb.weight"])
    for i, layer in enumerate(model.layers):
        at = f"_hstu._attention_layers.{i}"
        layer.uvqk.copy_(tensors[f"{at}._uvqk"])
        layer.out.weight.copy_(tensors[f"{at}._o.weight"])
        layer.out.bias.copy_(tensors[f"{at}._o.bias"])
        layer.pos_w.copy_(tensors[f"{at}._rel_attn_bias._pos_w"][: len(layer.pos_w)].flip(0))
        layer.time_w.copy_(tensors[f"{at}._rel_attn_bias._ts_w"])


def write_model(folder, model, config, data):
    """Writes the folder; `config` is what config.json states, `data` says what the item rows mean."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if "itemEncoding" in config:
        write_json(folder / config["itemEncoding"]["file"], data.items)
    write_json(folder / config["candidates"], [data.items[row - 1] for row in data.candidates])
    path = folder / "weights.safetensors"
    save_file(to_state_dict(model), path)
    path.chmod(0o644)  # save_file leaves it readable by its owner alone


def read_model(folder):
    """The model of a folder, float32 on the CPU, in evaluation mode."""
    folder = Path(folder)
    model = Hstu(complete(json.loads((folder / "config.json").read_text(encoding="utf-8"))))
    from_state_dict(model, load_file(folder / "weights.safetensors"))
    return model.eval()
