#!/bin/sh
# Runs the command that it is given, in its own place so that signals reach it. Before a server, and where no gallery
# is yet, it builds one of SAMPLE_MODELS random models: killed at any moment, it leaves none, and begins again.
set -eu
serves=
case "$*" in "seisbind serve"*) serves=yes ;; esac
if [ "$serves" ] && [ "${SAMPLE_MODELS:-0}" -gt 0 ] && [ ! -e "$SEISBIND_GALLERY/records.sqlite" ]; then
  echo "No gallery at $SEISBIND_GALLERY: building one of $SAMPLE_MODELS random velocity models (once; a minute or two)"
  # A first process has no handler of its own. This one is there before the builder is.
  trap '[ -z "${!:-}" ] || { kill -TERM "$!" && wait "$!"; } || true; exit 0' TERM INT
  seisbind gallery build "$SEISBIND_GALLERY" --count "$SAMPLE_MODELS" --seed 1 --device "${SEISBIND_DEVICE:-auto}" &
  wait "$!"
  trap - TERM INT
fi
exec "$@"
