"""Stored models: Hugging Face's folders (where their tensors lie, reading them, writing them) and GGUF files.

Nothing is imported here: folders need torch, GGUF files do not.
"""
