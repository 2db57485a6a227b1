"""What frozen features are good for: k-NN, linear and logistic classification, beside baselines."""

from openjepa.evals.features import embed
from openjepa.evals.knn import knn
from openjepa.evals.linear import batchnorm_linear, logistic
from openjepa.evals.run import evaluate, format_table

__all__ = ["batchnorm_linear", "embed", "evaluate", "format_table", "knn", "logistic"]
