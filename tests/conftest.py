"""Settings of every test: one thread a process, and how hard property-based tests search."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

from hypothesis import HealthCheck, settings

# Before anything imports torch or numpy: workers share few cores, and sub-processes inherit it.
for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_variable] = "1"

# Models are measured once a session, whoever opens them: worker processes inherit the folder.
if "STEPWELL_PROFILE_DIR" not in os.environ:
    os.environ["STEPWELL_PROFILE_DIR"] = tempfile.mkdtemp(prefix="stepwell-profiles-")
    atexit.register(shutil.rmtree, os.environ["STEPWELL_PROFILE_DIR"], ignore_errors=True)

# "default" repeats exactly, so that a change is judged by what it changed; "thorough" explores anew each time:
# HYPOTHESIS_PROFILE=thorough make test. No deadlines: the machine may be busy.
_common = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("default", _common, max_examples=40, derandomize=True)
settings.register_profile("thorough", _common, max_examples=1000, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
