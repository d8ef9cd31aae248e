"""The problems by kind, one file each, and the table of their names. A user's own is `path/to/file.py:factory`."""

from collections.abc import Callable
from typing import Any

from fedbilevel.problems.bilevel.hyper_cleaning import HyperCleaning, LinearCleaning, hyper_cleaning
from fedbilevel.problems.bilevel.hyper_representation import HyperRepresentation
from fedbilevel.problems.bilevel.loss_tuning import LossTuning
from fedbilevel.problems.bilevel.quadratic import Quadratic
from fedbilevel.problems.bilevel.regularisation import regularisation
from fedbilevel.problems.bilevel.unlearning import Unlearning
from fedbilevel.problems.minimax.fair_classification import FairClassification
from fedbilevel.problems.minimax.minimax_quadratic import MinimaxQuadratic
from fedbilevel.problems.minimax.robust_regression import RobustRegression
from fedbilevel.problems.tasks.few_shot import FewShot
from fedbilevel.problems.tasks.personal_representation import PersonalRepresentation
from fedbilevel.problems.tasks.quadratic_tasks import QuadraticTasks
from fedbilevel.problems.tasks.sinusoid import Sinusoid

__all__ = [
    "PROBLEMS",
    "FairClassification",
    "FewShot",
    "HyperCleaning",
    "HyperRepresentation",
    "LinearCleaning",
    "LossTuning",
    "MinimaxQuadratic",
    "PersonalRepresentation",
    "Quadratic",
    "QuadraticTasks",
    "RobustRegression",
    "Sinusoid",
    "Unlearning",
    "hyper_cleaning",
    "regularisation",
]

Factory = Callable[..., Any]
"""What makes a `Problem`; one with one loss lacks the `lower` of the protocol."""

PROBLEMS: dict[str, tuple[Factory, str]] = {
    "quadratic": (Quadratic, "heterogeneous quadratics with closed-form y*, hypergradient and x*"),
    "hyper_representation": (HyperRepresentation, "x: representation of a network; y: L2-regularised linear head"),
    "hyper_cleaning": (hyper_cleaning, "x: weights of training examples, some labels wrong; y: a classifier"),
    "fair_classification": (FairClassification, "minimax: x: a classifier; y: logits of the clients' weights"),
    "robust_regression": (RobustRegression, "minimax: x: a linear model; y: perturbations of its inputs"),
    "minimax_quadratic": (MinimaxQuadratic, "minimax: quadratics or a bilinear game, with closed-form saddle point"),
    "loss_tuning": (LossTuning, "x: adjustment of the logits of each class; y: network; a long tail"),
    "unlearning": (
        Unlearning,
        "x: the model served; y: x adapted to what is retained, the rest is forgotten",
    ),
    "regularisation": (regularisation, "x: log of l2 penalties; y: ridge, with closed forms, or logistic regression"),
    "sinusoid": (Sinusoid, "local lower level: regression of sine curves from a few points (MAML's)"),
    "few_shot": (FewShot, "local lower level: N-way K-shot classification of characters, clients own alphabets"),
    "personal_representation": (
        PersonalRepresentation,
        "local lower level: every client adapts a network, or its head, to its own examples; new clients too",
    ),
    "quadratic_tasks": (QuadraticTasks, "local lower level: quadratic tasks with closed-form meta-gradients"),
}
