"""Our own speed, commit by commit, by airspeed velocity (asv): `make asv`, `make asv-smoke`.

    heads.py     two heads, the sample's and a made one, and every index built on them once
    search.py    time, miss, output error and keys read of a search, by index and effort
    build.py     time, peak memory and size of a build, by index
    merge.py     the exact merge of partial attentions
    kernels.py   native kernels: inner products, gather-attention, and exact top-k
    smoke.py     runs everything once, and fails where nothing was measured

asv reports a rise of any number as a regression, so all that is tracked is better when lower. It imports this
folder as `asv_suite`, beside whatever version of ra_bench is installed: imports inside it are relative.
"""

import os

# One thread, as latencies are measured everywhere here; libraries read these when they load.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the command line does
