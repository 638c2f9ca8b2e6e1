"""What `bench fetch` can get: weights of the metrics, test sets, published outputs, weights of the methods.

The name to fetch is the name of what needs it: a metric, a test set or a method. Each item knows which of its files are
missing on this machine, so that a second call costs nothing, and puts them where the code that needs them looks.
Nothing in this project opens a connection unasked.
"""

from bench.fetch.item import Item
from bench.fetch.testsets import published_items, testset_items
from bench.fetch.weights import metric_items, weight_items


def items() -> dict[str, Item]:
    """Everything that can be fetched, by name, in the order of `bench fetch --list`."""
    found = [*metric_items(), *testset_items(), *published_items(), *weight_items()]
    return {item.name: item for item in found}
