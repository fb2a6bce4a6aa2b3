"""The whole decoder: against transformers where it is installed, and against itself step by step."""

import math

import pytest
import torch

from moekit.config import ModelConfig
from moekit.models import Decoder
from moekit.moe import Routing


@pytest.mark.parametrize("prompt", [1, 5])
def test_step_by_step_equals_the_whole_sequence(any_config: ModelConfig, prompt: int) -> None:
    model = Decoder(any_config).eval()
    tokens_BT = torch.randint(0, 256, (3, any_config.context))
    with torch.no_grad():
        whole = model(tokens_BT)
        caches = model.new_caches(3)
        steps = [model(tokens_BT[:, :prompt], caches=caches)]
        # Two at a time and one at a time: a masked block, then single tokens.
        steps.append(model(tokens_BT[:, prompt : prompt + 2], caches=caches))
        steps += [model(tokens_BT[:, t : t + 1], caches=caches) for t in range(prompt + 2, any_config.context)]
    torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=1e-4, atol=1e-5 * whole.std().item())


def test_no_token_sees_its_future(any_config: ModelConfig) -> None:
    model = Decoder(any_config).eval()
    tokens = torch.randint(0, 256, (1, 12))
    changed = tokens.clone()
    changed[0, 8:] = (changed[0, 8:] + 1) % 256
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :8], after[:, :8], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(before[:, 8:], after[:, 8:])


def test_backends_agree_on_loss_and_every_gradient(any_config: ModelConfig) -> None:
    models = {backend: Decoder(any_config, backend=backend).double() for backend in ("reference", "torch")}  # type: ignore[arg-type]
    models["torch"].load_state_dict(models["reference"].state_dict())
    tokens = torch.randint(0, 256, (2, any_config.context))
    losses = {}
    for backend, model in models.items():
        routings: list[Routing] = []
        loss = model(tokens, routings=routings).logsumexp(-1).mean()
        loss = loss + sum(
            value
            for layer, routing in zip(model.moe_layers, routings, strict=True)
            for value in layer.router.losses(routing.sums).values()
        )
        loss.backward()
        losses[backend] = loss
    torch.testing.assert_close(losses["torch"], losses["reference"], rtol=1e-12, atol=0)
    for (name, a), b in zip(models["torch"].named_parameters(), models["reference"].parameters(), strict=True):
        assert a.grad is not None, name
        assert b.grad is not None, name
        difference = (a.grad - b.grad).norm() / b.grad.norm().clamp(min=1e-300)
        assert difference < 1e-10, name


def test_an_untrained_model_knows_nothing(any_config: ModelConfig) -> None:
    """At the usual initialisation, log p is that of a uniform guess, log 1/256."""
    model = Decoder(any_config.model_copy(update={"init_std": 0.02})).eval()
    tokens = torch.randint(0, 256, (4, 24))
    with torch.no_grad():
        log_prob = model.log_prob(tokens)
    assert log_prob.shape == (4, 23)
    assert log_prob.mean().item() == pytest.approx(-math.log(256), rel=0.02)


def test_a_sequence_longer_than_the_context_is_refused(any_config: ModelConfig) -> None:
    with pytest.raises(ValueError, match="more than the context of 24"):
        Decoder(any_config)(torch.zeros(1, 25, dtype=torch.int64))


@pytest.mark.parametrize("kind", ["llama", "mixtral"])
def test_parity_with_transformers(kind: str, make_config: object) -> None:
    """Llama's shape dense, Mixtral's with experts: the same weights give the same logits."""
    transformers = pytest.importorskip("transformers", reason="parity needs transformers (pip install moekit[peers])")
    from tests.conftest import PLANS, model_config

    config = model_config(PLANS["dense" if kind == "llama" else "moe"])
    shape = {
        "vocab_size": 256,
        "hidden_size": 32,
        "intermediate_size": 48 if kind == "llama" else 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 24,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        "tie_word_embeddings": False,
    }
    if kind == "llama":
        theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape))
    else:
        theirs = transformers.MixtralForCausalLM(
            transformers.MixtralConfig(**shape, num_local_experts=4, num_experts_per_tok=2, sliding_window=None)
        )
    ours = Decoder(config).eval()
    theirs.load_state_dict(_as_transformers(ours), strict=True)
    tokens = torch.randint(0, 256, (2, 24))
    with torch.no_grad():
        expected, got = theirs.eval()(tokens).logits, ours(tokens)
    assert (got - expected).abs().max() <= 1e-5 * expected.std()


def _as_transformers(model: Decoder) -> dict[str, torch.Tensor]:
    """Our weights under transformers 5's names."""
    state = {
        "model.embed_tokens.weight": model.embedding.weight,
        "model.norm.weight": model.norm.weight,
        "lm_head.weight": model.head.weight,
    }
    for index, layer in enumerate(model.layers):
        prefix = f"model.layers.{index}."
        ours = dict(layer.named_parameters())
        query, key, value = ours["attention.query_key_value.weight"].split([4 * 8, 2 * 8, 2 * 8])
        for name, weight in (("q", query), ("k", key), ("v", value), ("o", ours["attention.output.weight"])):
            state[f"{prefix}self_attn.{name}_proj.weight"] = weight
        state[prefix + "input_layernorm.weight"] = ours["attention_norm.weight"]
        state[prefix + "post_attention_layernorm.weight"] = ours["feed_forward_norm.weight"]
        if "feed_forward.router.weight" in ours:
            state[prefix + "mlp.gate.weight"] = ours["feed_forward.router.weight"]
            state[prefix + "mlp.experts.gate_up_proj"] = ours["feed_forward.experts.gate_up_EGD"]
            state[prefix + "mlp.experts.down_proj"] = ours["feed_forward.experts.down_EDF"]
        else:
            gate, up = ours["feed_forward.gate_up.weight"].chunk(2)
            state[prefix + "mlp.gate_proj.weight"], state[prefix + "mlp.up_proj.weight"] = gate, up
            state[prefix + "mlp.down_proj.weight"] = ours["feed_forward.down.weight"]
    return {name: tensor.detach().clone() for name, tensor in state.items()}
