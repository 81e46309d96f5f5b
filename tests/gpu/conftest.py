"""--shard=I/N: every N-th test from the I-th, so that several processes share the compiler's work
(benchmarks/gpu_suite.py).
"""


def pytest_addoption(parser):
    parser.addoption("--shard", default="0/1", help="I/N: run the tests whose number leaves I when divided by N")


def pytest_collection_modifyitems(config, items):
    index, count = map(int, config.getoption("--shard", default="0/1").split("/"))
    config.hook.pytest_deselected(items=[item for number, item in enumerate(items) if number % count != index])
    items[:] = [item for number, item in enumerate(items) if number % count == index]
