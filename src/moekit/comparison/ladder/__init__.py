"""A ladder: the same contestants at several sizes and budgets, and what that says of the sizes beyond.

rungs: which sizes, and the frozen plan. ladder_runs: what they measured, as arrays. scaling_laws, law_fitting,
ladder_fit: laws, and draws of laws that fit as well. held_out_rungs: rungs predicted from smaller ones. leverage: how
many times the FLOPs the baseline needs. published_laws: what others found. target_scale: the scale that is asked about.
ladder_analysis: all of it, as ladder_schema holds it and ladder_answer says it.
"""
