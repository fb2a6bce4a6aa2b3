"""What a model needs, told from its configuration before anything is downloaded."""

from moekit.planning.describe import ModelPlan, plan, plan_model

__all__ = ["ModelPlan", "plan", "plan_model"]
