"""A program of its own: the logits that llama.cpp computes from GGUF files.

    python logits_by_llama_cpp.py TOKENS.json FILE...

It writes `FILE.npy` beside each file; where llama.cpp refuses one, there is none.
"""

import contextlib
import json
import sys
from pathlib import Path

import llama_cpp
import numpy as np


def main(tokens: str, *files: str) -> None:
    tokens_T = json.loads(Path(tokens).read_text())
    for file in files:
        with contextlib.suppress(ValueError):  # it cannot be loaded
            model = llama_cpp.Llama(
                file,
                n_ctx=64,
                n_batch=64,
                n_threads=1,
                logits_all=True,
                verbose=False,
                type_k=0,
                type_v=0,
                flash_attn=False,
            )
            model.eval(tokens_T)
            np.save(f"{file}.npy", model.scores[: len(tokens_T)])


if __name__ == "__main__":
    main(*sys.argv[1:])
