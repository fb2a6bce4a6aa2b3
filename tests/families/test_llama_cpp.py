"""Files that moekit writes, as llama.cpp computes them; where llama-cpp-python is installed."""

from pathlib import Path

import pytest
import torch
from tests.families.test_gguf import MODELS, file_of, folder_of

llama_cpp = pytest.importorskip("llama_cpp")

# It crashes on mixtures this small, of rows shorter than its blocks of 256.
DENSE = [name for name in MODELS if not any(part in name for part in ("moe", "mixtral"))]


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_llama_cpp_computes_what_transformers_does(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs, folder = folder_of(MODELS[name][1], tmp_path / "model")
    path, tokens_T = file_of(folder), torch.randint(0, 96, (40,))
    model = llama_cpp.Llama(
        str(path),
        n_ctx=64,
        n_batch=64,
        n_threads=1,
        logits_all=True,
        verbose=False,
        type_k=0,
        type_v=0,
        flash_attn=False,
    )
    model.eval(tokens_T.tolist())
    got_TV = torch.from_numpy(model.scores[: len(tokens_T)].copy())
    with torch.no_grad():
        expected_TV = theirs(tokens_T[None]).logits[0]
    # A window is not among what llama.cpp's llama architecture has; the first tokens see no further anyway.
    window = getattr(theirs.config, "sliding_window", None) if MODELS[name][0] == "llama" else None
    got_TV, expected_TV = got_TV[:window], expected_TV[:window]
    # It looks GELU up in a table of half precision (ggml_vec_gelu_f32); silu it computes.
    tolerance = 1e-2 if MODELS[name][0] == "gemma3" else 1e-3
    assert (got_TV - expected_TV).abs().max() <= tolerance * expected_TV.std()
