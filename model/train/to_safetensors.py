"""Turns checkpoints of Meta's generative-recommenders into the weights.safetensors that `peregrine export` reads.

    python model/train/to_safetensors.py --out DIR/weights.safetensors CHECKPOINT...

CHECKPOINT: a file of torch.save (.ckpt, .pt, .pth), read with weights_only, or a folder of torch.distributed.checkpoint,
whose .metadata is a pickle: only from where you would run code from. Several are joined, as the dense file and the sparse
folder of DLRM-v3. Tensors that no model here has are named and left out.
"""
import argparse
import pathlib
import re
import tempfile

import torch
from safetensors.torch import save_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

STATE_DICTS = ("model_state_dict", "state_dict", "dense_dict", "sparse_dict", "model")
KNOWN = re.compile(
    r"(module\.)?(_attn_mask$|_embedding_module\._item_emb\.|_input_features_preproc\._pos_emb\.|_hstu\._attention_layers\.\d+\."
    r"|_embedding_collection\.embeddings\.|_hstu_transducer\.|_item_embedding_mlp\.\d|_multitask_module\._prediction_module\.\d)"
)


def load(path: pathlib.Path) -> dict:
    if path.is_dir():
        with tempfile.TemporaryDirectory() as folder:
            dcp_to_torch_save(path, f"{folder}/whole.pt")
            return torch.load(f"{folder}/whole.pt", map_location="cpu", weights_only=True)
    return torch.load(path, map_location="cpu", weights_only=True)


def state_dict(value: dict) -> dict:
    """The tensors by name, out of what a trainer wraps them in."""
    wrapped = [name for name in STATE_DICTS if isinstance(value.get(name), dict)]
    if not wrapped:
        return {name: tensor for name, tensor in value.items() if isinstance(tensor, torch.Tensor)}
    return {name: tensor for key in wrapped for name, tensor in state_dict(value[key]).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="+", type=pathlib.Path)
    parser.add_argument("--out", required=True)
    arguments = parser.parse_args()
    tensors: dict = {}
    for path in arguments.checkpoint:
        for name, tensor in state_dict(load(path)).items():
            if name in tensors:
                raise SystemExit(f"{path}: tensor {name} is in an earlier checkpoint too")
            tensors[name] = tensor.float() if tensor.dtype == torch.float64 else tensor
    unknown = sorted(name for name in tensors if not KNOWN.match(name))
    kept = {name: tensors[name].detach().contiguous().clone() for name in tensors if name not in unknown}
    if not kept:
        raise SystemExit(f"no tensor of a known model among {len(tensors)}: {unknown[:5]}")
    save_file(kept, arguments.out)
    print(f"{len(kept)} tensors in {arguments.out}")
    for name in unknown:
        print(f"not known, left out: {name} {tuple(tensors[name].shape)}")


if __name__ == "__main__":
    main()
