"""Extra `eval-data`: collections can be asked for, and without a network there is a clear error."""

import datasets
import ir_datasets

print(bool(ir_datasets.registry), bool(datasets.__version__))
