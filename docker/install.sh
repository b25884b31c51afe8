#!/bin/sh
# Makes /opt/seisbind: an environment with SeisBind, torch and what both need, and nothing that a server never opens.
# install.sh BUILD INDEX [EXTRAS]: BUILD is the end of torch's version ("+cpu", or nothing for PyPI's), INDEX one more
# index, EXTRAS of pyproject.toml's extras, with commas between.
set -eu
build=$1 index=$2 extra=${3:-}
for unset in PIP_NO_INDEX PIP_INDEX_URL; do
  if eval "[ -z \"\${$unset:-}\" ]"; then unset "$unset"; fi
done
torch=$(sed -n 's/^torch==//p' constraints.txt)
want="torch==$torch$build"
[ -n "$build" ] || want="torch==$torch,!=$torch+cpu"

python3 -m venv /opt/build
python3 -m venv --without-pip /opt/seisbind
pip="/opt/build/bin/pip --quiet"
$pip install --constraint constraints.txt setuptools
$pip wheel --no-deps --no-build-isolation --wheel-dir /opt/wheel .
wheel=$(echo /opt/wheel/seisbind-*.whl)
put() {
  $pip --python /opt/seisbind/bin/python install --no-compile --constraint constraints.txt \
    ${index:+--extra-index-url "$index"} "$1" "$wheel${extra:+[$extra]}"
}
if ! put "$want"; then
  [ -n "$build" ] || exit 1
  echo "No torch $torch$build at hand; taking the default build, which brings CUDA (several GB). See TORCH_INDEX." >&2
  put "torch==$torch"
fi

cp docker/start.sh docker/ready.py /opt/seisbind/

cd /opt/seisbind/lib/python3*/site-packages
rm -rf torch/include torch/share torch/bin/protoc* torch/bin/test_* torch/lib/*.a # torch starts by bin/torch_shm_manager
find . -depth -type d \( -name tests -o -name test -o -name __pycache__ \) \
  ! -path './torch/*' ! -path './numpy/*' -exec rm -rf {} +
find . -depth -type d -path './numpy/*' -name tests ! -path './numpy/testing/*' -exec rm -rf {} +
find . -type f \( -name '*.pyi' -o -name '*.pxd' -o -name '*.h' \) -delete
# Bytecode for the modules that are really imported, and for no others: half the start, a tenth of the space.
cd /tmp
/opt/seisbind/bin/seisbind gallery build /tmp/tried --count 20
/opt/seisbind/bin/python - <<'END'
from seisbind.service.http.app import create_app
from seisbind.service.runtime.images import velocity_png
from seisbind.service.settings import Settings
import importlib.util
import numpy as np
import uvicorn.protocols.http.httptools_impl, uvicorn.lifespan.on, uvicorn.loops.auto
create_app(Settings(gallery="/tmp/tried"))
velocity_png(np.full((70, 70), 2000, np.float32), title="")
if importlib.util.find_spec("deepwave"):
    import deepwave
    from seisbind.service.engine.check import check_candidates
END
rm -rf /tmp/tried /opt/build /opt/wheel
du -sm /opt/seisbind
