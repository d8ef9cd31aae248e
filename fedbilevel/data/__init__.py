"""Data sets by name, and how their examples are spread over clients.
Nothing heavy is imported before a data set or a partition is asked for.
"""

from fedbilevel.data.datasets import DATASETS, Dataset, load
from fedbilevel.data.federated import FederatedData, federate
from fedbilevel.data.partitions import PARTITIONS, partition, partition_parameters, split_levels

__all__ = [
    "DATASETS",
    "PARTITIONS",
    "Dataset",
    "FederatedData",
    "federate",
    "load",
    "partition",
    "partition_parameters",
    "split_levels",
]
