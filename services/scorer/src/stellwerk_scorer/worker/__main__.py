"""Started by its path: gives this folder a package name that no user module has, then serves."""

import importlib.util
import os
import sys

_NAME = "stellwerk_worker"


def _main() -> int:
    folder = os.path.dirname(os.path.abspath(__file__))
    # Python put this folder here, whose modules would hide the user's of the same name.
    del sys.path[0]
    spec = importlib.util.spec_from_file_location(
        _NAME, os.path.join(folder, "__init__.py"), submodule_search_locations=[folder]
    )
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules[_NAME] = package
    spec.loader.exec_module(package)
    process = importlib.import_module(_NAME + ".process")
    return int(process.main())


if __name__ == "__main__":
    sys.exit(_main())
