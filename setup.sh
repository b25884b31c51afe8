#!/usr/bin/env bash
# Makes .venv with SeisBind in it: 'bash setup.sh' to run it, 'bash setup.sh dev' to test it as well.
# Does nothing when that is already so. torch comes as the CPU build on a machine without a GPU.
set -euo pipefail
cd "$(dirname "$0")"

extras=simulation,onnxruntime
[ "${1:-}" = dev ] && extras=dev
stamp=.venv/.seisbind-$extras
want=$(cat pyproject.toml constraints.txt setup.sh | cksum)
here='import os, sys, seisbind.service as s; sys.exit(not os.path.samefile(os.path.dirname(s.__file__), "service"))'
if [ "$(cat "$stamp" 2>/dev/null)" = "$want" ] && .venv/bin/python -c "$here" 2>/dev/null; then exit 0; fi

say() { printf '\033[1m==>\033[0m %s\n' "$*"; }
torch=$(sed -n 's/^torch==//p' constraints.txt)

python=
for name in python3 python3.11 python3.12 python3.13; do
  if command -v "$name" >/dev/null && "$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'; then
    python=$name
    break
  fi
done
if [ -z "$python" ]; then
  echo "setup: SeisBind needs Python 3.11 to 3.13; none of python3, python3.11-13 on this machine is one." >&2
  exit 1
fi

# the first lines of pip name this folder, unless the checkout was copied or moved with its environment
if ! .venv/bin/python -m pip --version >/dev/null 2>&1 || ! head -n 3 .venv/bin/pip | grep -qF "$PWD/.venv"; then
  say "making a virtual environment in .venv ($("$python" --version))"
  rm -rf .venv
  if ! "$python" -m venv .venv; then
    rm -rf .venv
    echo "setup: $python could not make a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2
    exit 1
  fi
fi
pip=(.venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt)

if ! .venv/bin/python -c "import sys, torch; sys.exit(torch.__version__.split('+')[0] != '$torch')" 2>/dev/null; then
  if [ "$(uname -s)-$(uname -m)" != Linux-x86_64 ]; then
    say "installing torch $torch"
    "${pip[@]}" "torch==$torch"
  elif nvidia-smi -L >/dev/null 2>&1; then
    say "installing torch $torch with CUDA, for $(nvidia-smi -L | head -n 1) (several GB; this takes a while)"
    "${pip[@]}" "torch==$torch,!=$torch+cpu"
  else
    say "installing torch $torch, the CPU build (no GPU found; about 200 MB)"
    if ! "${pip[@]}" "torch==$torch+cpu" 2>.venv/torch.log; then
      if ! grep -q 'No matching distribution' .venv/torch.log; then cat .venv/torch.log >&2; exit 1; fi
      say "no CPU build of torch $torch at hand: taking the default one, which brings CUDA (several GB)."
      say "to avoid that: stop, point PIP_EXTRA_INDEX_URL at PyTorch's index of CPU wheels, and run this again"
      "${pip[@]}" "torch==$torch"
    fi
  fi
fi
say "installing SeisBind and what it needs ($extras; a minute or two)"
"${pip[@]}" --editable ".[$extras]"
printf '%s' "$want" >"$stamp"
say "ready: $(.venv/bin/python -c 'import torch; print("torch", torch.__version__, "with a GPU" if torch.cuda.is_available() else "on the CPU")')"
