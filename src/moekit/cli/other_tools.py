"""What other programs for language models call their verbs and options, and what stands for these here."""

from collections.abc import Mapping

_GENERATE = "`moekit generate MODEL TEXT` continues a text, `moekit chat MODEL` talks"
_SERVE = "`moekit agents serve CONFIG` serves models and strategies over HTTP"
_QUANTIZE = "`moekit quantize MODEL --out FILE` writes a GGUF file"
_TRAIN = "`moekit train CONFIG` trains a model, or goes on with one (start: in its file)"
_EVALUATE = "`moekit evaluate MODEL --data SOURCE` measures perplexity and bits per byte"
_PLAN = "`moekit plan MODEL` tells parameters and memory"
_HUB = "where MODEL is a hub id (owner/name), every verb downloads it first"

VERBS: Mapping[str, str] = {
    "run": _GENERATE,
    "complete": _GENERATE,
    "completion": _GENERATE,
    "infer": _GENERATE,
    "inference": _GENERATE,
    "predict": _GENERATE,
    "sample": _GENERATE,
    "prompt": _GENERATE,
    "interactive": "`moekit chat MODEL` talks",
    "repl": "`moekit chat MODEL` talks",
    "talk": "`moekit chat MODEL` talks",
    "serve": _SERVE,
    "server": _SERVE,
    "api": _SERVE,
    "ask": "`moekit agents ask CONFIG QUESTION` asks models together",
    "agent": "`moekit agents` has the verbs ask, serve and evaluate",
    "convert": _QUANTIZE,
    "export": _QUANTIZE,
    "gguf": _QUANTIZE,
    "quantise": _QUANTIZE,
    "quant": _QUANTIZE,
    "finetune": _TRAIN,
    "fine-tune": _TRAIN,
    "pretrain": _TRAIN,
    "sft": _TRAIN,
    "fit": _TRAIN,
    "eval": _EVALUATE,
    "perplexity": _EVALUATE,
    "ppl": _EVALUATE,
    "score": _EVALUATE,
    "test": _EVALUATE,
    "bench": "`moekit doctor` measures this machine; `moekit generate` tells tokens a second at its end",
    "benchmark": "`moekit doctor` measures this machine; `moekit generate` tells tokens a second at its end",
    "info": _PLAN,
    "show": _PLAN,
    "inspect": _PLAN,
    "params": _PLAN,
    "memory": _PLAN,
    "list": "`moekit plan --list` lists the configurations that moekit knows by name",
    "ls": "`moekit plan --list` lists the configurations that moekit knows by name",
    "models": "`moekit plan --list` lists the configurations that moekit knows by name",
    "env": "`moekit doctor` shows what this machine has",
    "check": "`moekit doctor` shows what this machine has",
    "moe": "`moekit merge` makes a mixture of fine-tunes, `moekit upcycle` of one dense model",
    "mix": "`moekit merge CONFIG.yaml --out FOLDER` makes a mixture of fine-tunes",
    "moefy": "`moekit upcycle MODEL --out FOLDER` makes a mixture of a dense model",
    "pull": _HUB,
    "download": _HUB,
    "get": _HUB,
    "resume": "`moekit compare --resume FOLDER` goes on; other verbs go on when the same command is given again",
    "report": "`moekit compare` writes report.html into its folder",
    "help": "`moekit --help` lists the verbs, `moekit VERB --help` the options of one",
    "version": "`moekit --version` tells it",
}

OPTIONS: Mapping[str, tuple[str, ...]] = {
    "-c": ("--context",),
    "--ctx-size": ("--context",),
    "--n-ctx": ("--context",),
    "--num-ctx": ("--context",),
    "--max-seq-len": ("--context",),
    "--max-model-len": ("--context",),
    "--max-length": ("--max-tokens", "--context"),
    "--max-new-tokens": ("--max-tokens",),
    "--n-predict": ("--max-tokens",),
    "--num-predict": ("--max-tokens",),
    "--predict": ("--max-tokens",),
    "--temp": ("--temperature",),
    "--repeat-penalty": ("--repetition-penalty",),
    "--reverse-prompt": ("--stop",),
    "-r": ("--stop",),
    "--eos": ("--stop",),
    "--file": ("--prompt-file", "--data"),
    "-f": ("--prompt-file", "--data"),
    "--system-prompt": ("--system",),
    "-sys": ("--system",),
    "--rng-seed": ("--seed",),
    "--random-seed": ("--seed",),
    "-s": ("--seed", "--system"),
    "--output": ("--out",),
    "--output-dir": ("--out",),
    "--outfile": ("--out",),
    "--out-dir": ("--out",),
    "-o": ("--out",),
    "--outtype": ("--type",),
    "--qtype": ("--type",),
    "--quant": ("--type", "--quantize"),
    "--quantization": ("--type", "--quantize"),
    "--bits": ("--type", "--quantize"),
    "--load-in-4bit": ("--quantize",),
    "--load-in-8bit": ("--quantize",),
    "--num-experts": ("--experts",),
    "--n-experts": ("--experts",),
    "--num-local-experts": ("--experts",),
    "--num-experts-per-tok": ("--top-k",),
    "--experts-per-token": ("--top-k",),
    "--dataset": ("--data",),
    "--data-path": ("--data",),
    "--input": ("--data", "--prompt-file"),
    "--time": ("--budget",),
    "--models": ("--contestants",),
}
"""Options of other programs, and those of ours that do the same: the first that a verb has."""

_YAML = "stands in the YAML file, under training: (docs/train.md)"
_GPU = "is not needed: models run on the processor"
_THREADS = "is the environment variable OMP_NUM_THREADS here"
_QUIET = "is not needed: results go to standard output, progress and figures to standard error"
_CHAT = "is a verb here: `moekit chat MODEL`"
_SERVED = "belongs to `moekit agents serve CONFIG`"
_CODE = "is not needed: code that a model's folder brings never runs"

REMARKS: Mapping[str, str] = {
    "--threads": _THREADS,
    "-t": _THREADS,
    "--n-gpu-layers": _GPU,
    "--gpu-layers": _GPU,
    "-ngl": _GPU,
    "--device": _GPU,
    "--interactive": _CHAT,
    "--conversation": _CHAT,
    "-cnv": _CHAT,
    "-i": _CHAT,
    "--host": _SERVED,
    "--port": _SERVED,
    "--quiet": _QUIET,
    "-q": _QUIET,
    "--verbose": _QUIET,
    "-v": _QUIET,
    "--log-disable": _QUIET,
    "--trust-remote-code": _CODE,
    "--epochs": _YAML,
    "--steps": _YAML,
    "--max-steps": _YAML,
    "--learning-rate": _YAML,
    "--lr": _YAML,
    "--batch-size": _YAML,
    "-hf": "is not needed: MODEL may be a hub id (owner/name)",
    "--hf-repo": "is not needed: MODEL may be a hub id (owner/name)",
}
"""Options of other programs that no option here stands for, and what a user does instead."""

_MODEL = ("model", "dense")

ARGUMENTS: Mapping[str, tuple[str, ...]] = {
    "--model": _MODEL,
    "-m": _MODEL,
    "--model-path": _MODEL,
    "--model-id": _MODEL,
    "--model-name": _MODEL,
    "--hf-model": _MODEL,
    "--checkpoint": _MODEL,
    "--checkpoint-dir": _MODEL,
    "--pretrained": _MODEL,
    "--base-model": _MODEL,
    "--config": ("config",),
    "--config-file": ("config",),
    "--prompt": ("question",),
    "-p": ("question",),
    "--question": ("question",),
}
"""Options of other programs, and the names of the arguments, given without an option, that mean the same."""
