"""A fleet of servers on Ray: `serve run cgpt.cluster.ray:app model=DIR`. Needs the extra [ray].

Ray Serve's proxies hand each request to front.py, which lets it in as `cgpt serve` does and reads what it begins with
(affinity.py). router.py chooses a replica by that; replica.py answers, through the endpoints of cgpt.serve, on cores of
its own (cores.py). relay.py passes the answer on. application.py puts these together as options.py says.
"""

from cgpt.cluster.ray.application import app

__all__ = ["app"]
