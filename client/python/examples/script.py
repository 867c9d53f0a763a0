"""Writes a model as TorchScript, for client/torch/examples/served_module.cc."""
import pathlib

import torch
from google.protobuf import json_format


def write(folder, model, example, here, served, mask=None):
    """model.pt, traced with the arguments `example`; inputs.pt, those of the run here and of the served one, which may
    have other sizes; mask.json, of the scope."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        torch.jit.trace(model, example).save(str(folder / "model.pt"))
    torch.save({"here": here, "served": served}, folder / "inputs.pt")
    if mask is not None:
        (folder / "mask.json").write_text(json_format.MessageToJson(mask.to_message()))
