"""A program of its own: the logits that whatever transformers it runs with computes from folders.

    python logits_by_transformers.py TOKENS.json FOLDER...

It writes `logits.npy` into each folder, and on standard output the version and, as JSON, what did not fit by folder.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers


def main(tokens: str, *folders: str) -> None:
    tokens_BT = torch.tensor(json.loads(Path(tokens).read_text()))
    problems = {}
    for folder in folders:
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            folder, output_loading_info=True, torch_dtype="auto"
        )
        problems[folder] = {kind: sorted(map(str, names)) for kind, names in info.items() if names}
        with torch.no_grad():
            logits_BTV = model.eval()(tokens_BT).logits
        np.save(Path(folder) / "logits.npy", logits_BTV.numpy())
    wrong = {folder: found for folder, found in problems.items() if found}
    sys.stdout.write(f"{transformers.__version__} {json.dumps(wrong)}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
