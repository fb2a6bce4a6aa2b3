"""The fast paths behind `nn/` and `moe/`, and behind packed models: a folder a backend.

`backends` chooses what computes experts, and nobody else does. Nothing is imported here: `native` and the types of
`packed` do not need torch, all else does.
"""
