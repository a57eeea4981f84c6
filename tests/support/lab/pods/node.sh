#!/bin/bash
# node.sh NAME FOLDER KUBELET: a node of a cluster with pods, in the network namespace where this is called. It has
# namespaces of its own for mounts, processes, names and cgroups, and everything in it ends with the process that this
# becomes. FOLDER has what node.py wrote: the settings of containerd and kubelet, the node's address, its cgroups.
set -eu
name=$1 folder=$2 kubelet=$3
if [ "${4:-}" != inside ]; then
  while read -r group; do echo $$ > "$group/cgroup.procs"; done < "$folder/cgroups"
  exec unshare --mount --propagation private --pid --fork --uts --ipc --cgroup --kill-child=KILL -- "$0" "$@" inside
fi
hostname "$name"
mount -t proc proc /proc
mount -t sysfs sysfs /sys # shows the network namespace in which it is mounted
mount -t tmpfs -o mode=755 cgroup /sys/fs/cgroup
hierarchies=$(cat /proc/self/cgroup)
while IFS=: read -r _ controllers _; do
  [ -n "$controllers" ] || continue # cgroup v2 has none that kubelet asks for
  place=/sys/fs/cgroup/${controllers#name=}
  mkdir "$place"
  case $controllers in
    name=*) mount -t cgroup -o "none,$controllers" cgroup "$place" ;;
    *) mount -t cgroup -o "$controllers" cgroup "$place" ;;
  esac
  case $controllers in *,*) for one in ${controllers//,/ }; do ln -s "$controllers" "/sys/fs/cgroup/$one"; done ;; esac
done <<< "$hierarchies"
for place in /run /opt /var/log /var/lib; do mount -t tmpfs -o mode=755 tmpfs "$place"; done
# kubelet sets these for the whole machine unless they have its values: it is shown its values.
mkdir /run/tunables
for pair in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \
  kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
  [ -e "/proc/sys/${pair%=*}" ] || continue
  shown=/run/tunables/$(basename "${pair%=*}")
  echo "${pair#*=}" > "$shown"
  mount --bind "$shown" "/proc/sys/${pair%=*}"
done
mount --make-rshared /
echo 1 > /proc/sys/net/ipv4/ip_forward
containerd --config "$folder/containerd.toml" > "$folder/containerd.log" 2>&1 &
until ctr version > /dev/null 2>&1; do sleep 0.05; done
while :; do
  "$kubelet" --config "$folder/kubelet.yaml" --kubeconfig "$folder/kubelet.kubeconfig" --hostname-override "$name" \
    --root-dir "$folder/kubelet" --node-ip "$(cat "$folder/address")" -v=1 >> "$folder/kubelet.log" 2>&1 || true
  sleep 1
done
