"""What a model needs, told from its configuration before anything is downloaded."""

from moekit.plan.describe import ModelPlan, plan_model

__all__ = ["ModelPlan", "plan_model"]
