"""Two hosts, their kernels, one etcd, and everything that can go wrong between any two steps.

The transitions, the store and `decide` are the real ones; kernels, agents and workers are as
small as they can be: each step is atomic, so a crash between any two of them is a crash anywhere.
The kernels are the truth that is checked against.

A name meets others only in what concerns all of a host: so a step of the world is one of the
cluster, to which each name reacts, or one of a single name. (A parent that is full is not
modelled by its other devices: the kernel may say so at any time.)
"""

from __future__ import annotations

from tests.model.clusters import ClusterSteps
from tests.model.names import NameSteps
from tests.model.parts import Budget, Rules
from tests.model.reactions import Reactions

__all__ = ["World"]


class World:
    """The steps of a model with these faults and rules. It holds no state."""

    def __init__(self, budget: Budget | None = None, rules: Rules | None = None) -> None:
        budget, rules = budget or Budget(), rules or Rules()
        self.cluster_steps = ClusterSteps(budget, rules).cluster_steps
        self.part_steps = NameSteps(budget, rules).part_steps
        self.react = Reactions(rules).react
