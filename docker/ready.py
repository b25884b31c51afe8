"""The image's HEALTHCHECK: exit code 0 where its server is ready, 1 and the reason where it is not."""

import os
import sys
import urllib.request

DEADLINE_S = 12.0  # the server gives its canary 10

url = f"http://127.0.0.1:{os.environ.get('SEISBIND_PORT', '8000')}/readyz"
try:
    # no proxy of the environment is to stand between a container and itself
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=DEADLINE_S).close()
except OSError as error:
    sys.exit(f"{url}: {error}")
