"""The build is described in pyproject.toml; here is what it has no words for: compiling the schedulers, if asked.

``STEPWELL_COMPILE=1 pip install .`` has mypyc turn them into C extensions, which decide the same in less time. It needs
a C compiler. The base classes stay as they are: policies of others derive from them.
"""

import os
import sys
from pathlib import Path

from setuptools import Extension, setup

COMPILES = os.environ.get("STEPWELL_COMPILE") == "1"
INTERPRETED = {"__init__.py", "admission.py", "base.py", "registry.py"}
# Links to the folders at the root: there modules have their real names, as [tool.mypy] says.
SCHEDULERS = Path("typings/stepwell/schedulers")


def extensions() -> list[Extension]:
    """What is compiled."""
    if not COMPILES:
        return []
    if not SCHEDULERS.is_dir():
        raise SystemExit(f"STEPWELL_COMPILE: {SCHEDULERS} is missing; compile from a checkout, or unset it")
    try:
        from mypyc.build import mypycify
    except ImportError:
        if "egg_info" in sys.argv:  # pip asks what the build requires: see below
            return []
        raise SystemExit("STEPWELL_COMPILE: needs mypy (pip install mypy), or a build in isolation") from None
    return mypycify([str(path) for path in sorted(SCHEDULERS.glob("*.py")) if path.name not in INTERPRETED])


setup(ext_modules=extensions(), setup_requires=["mypy>=1.15", "numpy>=1.26"] if COMPILES else [])
