#!/bin/bash
# unpack.sh FOLDER ARCHIVE...: makes FOLDER/root, containerd's files with the images of these archives unpacked.
set -eu
folder=$1
if [ "${UNPACK_INSIDE:-}" != yes ]; then
  export UNPACK_INSIDE=yes
  exec unshare --mount --propagation private --net --pid --fork --kill-child=KILL --mount-proc -- "$0" "$@"
fi
shift
for place in /run /opt; do mount -t tmpfs tmpfs "$place"; done
printf 'version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\nroot = "%s/root"\nstate = "/run/containerd"\n[grpc]\naddress = "/run/containerd/containerd.sock"\n' \
  "$folder" > "$folder/containerd.toml"
containerd --config "$folder/containerd.toml" > "$folder/containerd.log" 2>&1 &
daemon=$!
until ctr version > /dev/null 2>&1; do
  kill -0 $daemon || { cat "$folder/containerd.log"; exit 1; }
  sleep 0.05
done
for archive in "$@"; do ctr --namespace k8s.io images import "$archive"; done
kill $daemon
wait $daemon || true
