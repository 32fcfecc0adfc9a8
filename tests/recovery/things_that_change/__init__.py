"""Everything that a result depends on, each in two states; a helper of ``test_changed_results.py``.

Each maker gets a folder for files and whether the one thing it is about has changed, and returns the parameters of a
call. Called twice with the same arguments, it makes fresh objects that are alike.
"""

from tests.recovery.things_that_change import functions, inputs, networks, parameters  # noqa: F401  each adds its own
from tests.recovery.things_that_change.makers import MAKERS

__all__ = ["MAKERS"]
