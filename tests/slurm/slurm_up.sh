#!/usr/bin/env bash
# A real Slurm on this one machine, for tests: as root on Debian, without systemd, cgroups or a database.
#
#   slurm_up.sh [up]          brings it up and prints the line that makes it yours: export SLURM_CONF=...
#   slurm_up.sh down          ends it, and every job in it
#   slurm_up.sh status        its processes, nodes and jobs
#   slurm_up.sh age [SECONDS] lets it forget ended jobs after so long (MinJobAge), while it runs
#
# Nodes cpu1, cpu2 and gpu1, all of them this machine; partitions
#   cpu (default)  cpu1, cpu2        gpu  gpu1, with fake GPUs
#   short          cpu1, 2 minutes   all  the three of them
#
# HPCAL_SLURM_ROOT     its folder; the path must be short, and others must be able to enter it, because
#                      munged has a user of its own       (default: hpcal-slurm in TMPDIR or /tmp)
# HPCAL_SLURM_CPUS     CPUs of each node, which may be more than there are          (default: 8)
# HPCAL_SLURM_GPUS     GPUs of gpu1                                                 (default: 2)
# HPCAL_SLURM_AGE      seconds after which an ended job is forgotten                (default: 300)
# HPCAL_SLURM_PORT     first of four ports on 127.0.0.1                             (default: 16817)
set -euo pipefail

root=${HPCAL_SLURM_ROOT:-${TMPDIR:-/tmp}/hpcal-slurm}
cpus=${HPCAL_SLURM_CPUS:-8}
gpus=${HPCAL_SLURM_GPUS:-2}
age=${HPCAL_SLURM_AGE:-300}
port=${HPCAL_SLURM_PORT:-16817}
nodes=(cpu1 cpu2 gpu1)
socket=$root/munge/socket
export SLURM_CONF=$root/etc/slurm.conf

# Ids of the processes of this Slurm, by the files that they write, so that no other is touched.
processes() {
  local file
  for file in "$root"/run/slurmd-{cpu1,cpu2,gpu1}.pid "$root"/run/slurmctld.pid "$root"/munge/munged.pid; do
    if [ -s "$file" ]; then echo "$(basename "$file" .pid) $(cat "$file" 2>/dev/null)"; fi
  done
}

# Those that live; an id of an earlier day may be another program's by now.
alive() {
  local name id
  while read -r name id; do
    if [ "$(cat "/proc/$id/comm" 2>/dev/null)" = "${name%%-*}" ]; then echo "$id"; fi
  done < <(processes)
}

# wait_for SECONDS COMMAND...: until it succeeds
wait_for() {
  local left=$(($1 * 5))
  shift
  until "$@"; do
    left=$((left - 1))
    [ "$left" -gt 0 ] || return 1
    sleep 0.2
  done
}

nobody_alive() { [ -z "$(alive)" ]; }
nodes_idle() { [ "$(timeout 10 sinfo -h -N -o '%N %t' 2>/dev/null | sort -u | grep -c ' idle$')" = ${#nodes[@]} ]; }

down() {
  # Jobs first: they would outlive the daemons. Only where the controller lives: another may have its port.
  if controller_alive; then
    timeout 20 scancel --user=root >/dev/null 2>&1 || true
    wait_for 15 no_jobs || true
  fi
  local id
  for id in $(alive); do kill "$id" 2>/dev/null || true; done
  wait_for 10 nobody_alive || for id in $(alive); do kill -9 "$id" 2>/dev/null || true; done
  rm -f "$root"/run/*.pid "$root"/munge/munged.pid
}
controller_alive() {
  local id
  id=$(cat "$root/run/slurmctld.pid" 2>/dev/null) && alive | grep -qx "$id"
}
no_jobs() { [ -z "$(timeout 10 squeue -h 2>/dev/null)" ]; }

# Commands would talk to whoever has the ports, and take the answers for those of this Slurm.
ports_free() {
  local at
  for ((at = port; at < port + 4; at++)); do
    if (: <"/dev/tcp/127.0.0.1/$at") 2>/dev/null; then
      echo "port $at is taken, by another Slurm perhaps; choose others with HPCAL_SLURM_PORT" >&2
      return 1
    fi
  done
}

packages() {
  local program
  for program in slurmctld slurmd sbatch munged; do
    command -v "$program" >/dev/null && continue
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
      slurmctld slurmd slurm-client munge >/dev/null
    return
  done
}

munge_up() {
  # The package makes a key; minimal images may have dropped it.
  if [ ! -s /etc/munge/munge.key ]; then
    mkdir -p /etc/munge
    head -c 1024 /dev/urandom >/etc/munge/munge.key
  fi
  chown munge:munge /etc/munge/munge.key
  chmod 400 /etc/munge/munge.key
  # A socket of its own leaves a munged of the system alone.
  install -d -o munge -g munge -m 0755 "$root/munge"
  runuser -u munge -- "$(command -v munged || echo /usr/sbin/munged)" --num-threads=2 \
    --key-file=/etc/munge/munge.key --socket="$socket" --pid-file="$root/munge/munged.pid" \
    --log-file="$root/munge/munged.log" --seed-file="$root/munge/munged.seed"
  wait_for 10 test -S "$socket"
}

configure() {
  local host memory i
  host=$(hostname -s)
  memory=$(awk '/^MemTotal/ {print int($2 / 1024 * 0.9)}' /proc/meminfo)
  mkdir -p "$root/dev"
  # Slurm sets CUDA_VISIBLE_DEVICES only for character devices, by the number at the end of the name:
  # these are /dev/null under other names. A file is the second best: jobs are placed, nothing is set.
  for ((i = 0; i < gpus; i++)); do
    mknod -m 666 "$root/dev/nvidia$i" c 1 3 2>/dev/null || : >"$root/dev/nvidia$i"
  done
  echo "NodeName=gpu1 Name=gpu File=$root/dev/nvidia[0-$((gpus - 1))]" >"$root/etc/gres.conf"
  # Slurm 22.05 loads a cgroup plugin even where nothing uses it, and v2 would ask for systemd.
  echo "CgroupPlugin=cgroup/v1" >"$root/etc/cgroup.conf"
  cat >"$SLURM_CONF" <<CONF
ClusterName=hpcal
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$socket
MpiDefault=none
MailProg=/bin/true
StateSaveLocation=$root/state
SlurmdSpoolDir=$root/spool-%n
SlurmctldPidFile=$root/run/slurmctld.pid
SlurmdPidFile=$root/run/slurmd-%n.pid
SlurmctldLogFile=$root/log/slurmctld.log
SlurmdLogFile=$root/log/slurmd-%n.log
SlurmctldDebug=info
SlurmdDebug=info
# Neither cgroups nor a database.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SwitchType=switch/none
# Nodes have the CPUs that are written here, not those of the machine.
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
GresTypes=gpu
# Quick, for tests.
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=5,sched_interval=5
MinJobAge=$age
KillWait=5
OverTimeLimit=0
InactiveLimit=0
MessageTimeout=20
SlurmctldTimeout=30
SlurmdTimeout=60
ReturnToService=2
NodeName=cpu1 NodeHostname=cpu1 NodeAddr=127.0.0.1 Port=$((port + 1)) CPUs=$cpus RealMemory=$memory
NodeName=cpu2 NodeHostname=cpu2 NodeAddr=127.0.0.1 Port=$((port + 2)) CPUs=$cpus RealMemory=$memory
NodeName=gpu1 NodeHostname=gpu1 NodeAddr=127.0.0.1 Port=$((port + 3)) CPUs=$cpus RealMemory=$memory Gres=gpu:$gpus
PartitionName=cpu Nodes=cpu1,cpu2 Default=YES MaxTime=INFINITE State=UP
PartitionName=gpu Nodes=gpu1 MaxTime=INFINITE State=UP
PartitionName=short Nodes=cpu1 MaxTime=2 State=UP
PartitionName=all Nodes=cpu1,cpu2,gpu1 MaxTime=INFINITE State=UP
CONF
}

up() {
  packages
  down
  ports_free
  rm -rf "${root:?}"
  mkdir -p "$root"/{etc,run,log,state,spool-cpu1,spool-cpu2,spool-gpu1}
  chmod 755 "$root" "$root"/*
  munge_up
  configure
  local node
  slurmctld -f "$SLURM_CONF" -c
  # One slurmd a node: -N is enough where each has a host name and a port of its own.
  for node in "${nodes[@]}"; do slurmd -f "$SLURM_CONF" -N "$node"; done
  if ! wait_for 30 nodes_idle; then
    echo "slurm did not come up; its logs end so:" >&2
    tail -n 20 "$root"/log/*.log >&2
    exit 1
  fi
  echo "export SLURM_CONF=$SLURM_CONF"
}

age() {
  sed -i "s/^MinJobAge=.*/MinJobAge=$1/" "$SLURM_CONF"
  scontrol reconfigure
}

PATH=$PATH:/usr/sbin:/sbin
case "${1:-up}" in
  up) up ;;
  down) down ;;
  status)
    processes
    sinfo
    squeue
    ;;
  age) age "${2:-$age}" ;;
  *)
    sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
