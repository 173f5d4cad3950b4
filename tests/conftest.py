"""The order of the tests, which ask no hub for weights."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before a library reads it

# The longest files: they come first, so that two workers end at about the same time. The first one
# makes the finished project, for which others would wait.
LONGEST = ("test_extending", "test_presets", "test_pipeline", "test_interruption", "test_resume")
LONGEST += ("test_honest_caching", "test_training", "test_report")


def pytest_collection_modifyitems(items):
    """The longest files first."""
    order = {f"{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))
