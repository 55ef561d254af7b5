#!/usr/bin/env bash
# Start a real SLURM of one node on this machine, with two partitions: jobs in `high` preempt jobs
# in `low`, which are queued again. For tests; needs root and Debian's or Ubuntu's slurm-wlm.
#
#   start_one_node.sh FOLDER   install what is missing, write a configuration into FOLDER, start
#   start_one_node.sh stop FOLDER   stop the daemons that were started with it
set -euo pipefail

if [ "${1:-}" = stop ]; then
  for daemon in slurmd slurmctld; do
    [ ! -s "$2/$daemon.pid" ] || kill "$(cat "$2/$daemon.pid")" || true
  done
  exit 0
fi
folder=$(mkdir -p "$1" && cd "$1" && pwd)

if ! command -v slurmctld >/dev/null || ! command -v munged >/dev/null; then
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge
fi

# munge: proof of identity between the daemons, with a key of this machine alone
[ -s /etc/munge/munge.key ] || dd if=/dev/urandom of=/etc/munge/munge.key bs=1 count=1024 status=none
mkdir -p /run/munge
chown -R munge:munge /etc/munge /run/munge /var/log/munge /var/lib/munge
chmod 400 /etc/munge/munge.key
pgrep -x munged >/dev/null || runuser -u munge -- munged --force

host=$(hostname -s)
memory=$(awk '/MemTotal/ {print int($2 / 1024 * 0.9)}' /proc/meminfo)
mkdir -p "$folder/state" "$folder/spool"
cat >"$folder/slurm.conf" <<CONF
ClusterName=one
SlurmctldHost=$host
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
SlurmctldPort=16817
SlurmdPort=16818
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
InactiveLimit=0
KillWait=5
MinJobAge=300
SlurmdTimeout=60
NodeName=$host CPUs=$(nproc --all) RealMemory=$memory State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
CONF

export SLURM_CONF=$folder/slurm.conf
slurmctld -c
slurmd
for _ in $(seq 60); do
  if sinfo -h -p low -o %T 2>/dev/null | grep -q idle; then
    echo "SLURM_CONF=$SLURM_CONF"
    exit 0
  fi
  sleep 1
done
echo "the node did not become idle; see $folder/slurmctld.log and $folder/slurmd.log" >&2
exit 1
