"""Writes and reads a model folder: config.json, weights.safetensors, vocabularies/*.json and items.json."""

import json
from pathlib import Path

from safetensors.torch import load_file, save_file

from model import Hstu


def write_json(path, value):
    """Compact JSON with a final newline."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")


def weights_of(model):
    """The file's tensors, float32 on the CPU, under the names of the state dict."""
    return {name: tensor.detach().float().cpu().contiguous() for name, tensor in model.state_dict().items()}


def catalogue(data):
    """items.json: raw author, tag and duration (ms) of every video, null where missing."""
    return {"features": ["author", "tag", "duration"], "items": {v: list(raw) for v, raw in data.videos.items()}}


def export_model(folder, model, vocabularies, data):
    """Writes the model folder; config.json is indented, since people read it."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(model.config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    for name, values in vocabularies.items():
        write_json(folder / "vocabularies" / f"{name}.json", values)
    write_json(folder / "items.json", catalogue(data))
    path = folder / "weights.safetensors"
    save_file(weights_of(model), path)
    path.chmod(0o644)  # save_file leaves it readable by its owner alone


def load_model(folder):
    """(Hstu in float32 on the CPU, config, {name: vocabulary}) of a model folder."""
    folder = Path(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    slots = config["context"] + config["itemFeatures"]
    files = {s["name"]: s["encoding"]["file"] for s in slots if s["encoding"]["kind"] == "vocabulary"}
    vocabularies = {name: json.loads((folder / file).read_text(encoding="utf-8")) for name, file in files.items()}
    model = Hstu(config)
    model.load_state_dict(load_file(folder / "weights.safetensors"))
    return model.eval(), config, vocabularies


def count_parameters(model):
    """Number of weights."""
    return sum(p.numel() for p in model.parameters())
