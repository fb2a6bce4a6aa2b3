"""Training: one loop, one optimiser, a schedule, durable checkpoints."""

from moekit.training.average import AVERAGE_TEXT, new_average
from moekit.training.job import Schedule, TrainingJob, read_job
from moekit.training.loop import (
    Interrupted,
    StepReport,
    Trainer,
    TrainingHistory,
)
from moekit.training.schedule import SCHEDULE_TEXT, learning_rate
from moekit.training.step import StepResult, matrix_precision, new_optimizer, training_step
from moekit.training.step_log import CollapseWatch, StepLog, StepRecord, routing_by_layer
from moekit.training.train_model import TrainingResult, check_trainable, train
from moekit.training.training_config import TrainingConfig

__all__ = [
    "AVERAGE_TEXT",
    "SCHEDULE_TEXT",
    "CollapseWatch",
    "Interrupted",
    "Schedule",
    "StepLog",
    "StepRecord",
    "StepReport",
    "StepResult",
    "Trainer",
    "TrainingConfig",
    "TrainingHistory",
    "TrainingJob",
    "TrainingResult",
    "check_trainable",
    "learning_rate",
    "matrix_precision",
    "new_average",
    "new_optimizer",
    "read_job",
    "routing_by_layer",
    "train",
    "training_step",
]
