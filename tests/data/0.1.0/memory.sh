#!/bin/bash
#SBATCH --job-name=len-00000000-0-0
#SBATCH --array=0-2
#SBATCH --output=/runs/STAMP-len-00000000/logs/0-0-%a.out
#SBATCH --error=/runs/STAMP-len-00000000/logs/0-0-%a.err
#SBATCH --open-mode=append
#SBATCH --export=ALL
#SBATCH --dependency=singleton
#SBATCH --requeue
#SBATCH --cpus-per-task=1
#SBATCH --mem=4G
#SBATCH --constraint="a&b"

umask 0022; unset SLURM_UMASK  # as at the submission; sbatch had 077, for the logs
# Not at once: a signal for the task reaches this script too, which has to outlive the node.
trap '' USR1 TERM
export SLURMLAUNCH_STARTED; printf -v SLURMLAUNCH_STARTED '%(%s)T' -1

slurmlaunch_task=$((0 + SLURM_ARRAY_TASK_ID))
slurmlaunch_enter() {  # a folder in the run folder, unless another one is in its place
    builtin cd -P -- /runs/STAMP-len-00000000 && [ -O . ] && [ -e ./secret-00000000 ] && builtin cd -P -- ./"$1"
}
slurmlaunch_marked= slurmlaunch_node=
slurmlaunch_mark() {  # how this start of the task ended
    [ -z "$slurmlaunch_marked" ] || return 0; slurmlaunch_marked=1
    (umask 077; set -C; slurmlaunch_enter ended && : > ./"${slurmlaunch_task}.${SLURM_RESTART_COUNT:-0}.$1") || :
}
slurmlaunch_give_up() {
    trap - ERR EXIT; echo "slurmlaunch: the task was not started: $1" >&2
    slurmlaunch_mark 3; exit 3
}
slurmlaunch_killed() {  # by a signal: the node ends in good order, and the mark names the signal
    trap "" "$1"; [ -z "$slurmlaunch_node" ] || { kill "$slurmlaunch_node"; wait "$slurmlaunch_node"; } || :
    slurmlaunch_mark $((128 + $1)); trap - ERR EXIT "$1"; kill -"$1" $$
} 2>/dev/null
for slurmlaunch_signal in 1 2 3 6 12 14 24; do
    trap "slurmlaunch_killed $slurmlaunch_signal" "$slurmlaunch_signal"
done
trap 'slurmlaunch_mark $?' EXIT

cd -- / || slurmlaunch_give_up 'its working directory is not there'

if [ -z ${PYTHON_CPU_COUNT+set} ]; then
    export PYTHON_CPU_COUNT=1 SLURMLAUNCH_SET=${SLURMLAUNCH_SET:+$SLURMLAUNCH_SET:}PYTHON_CPU_COUNT
fi

slurmlaunch_count_ooms() {  # how many processes of this task the kernel has ended for want of memory
    local line file name number; slurmlaunch_ooms=0
    while read -r line; do
        case $line in
            0::*) file=/sys/fs/cgroup${line#0::}/memory.events ;;
            *:memory:*) file=/sys/fs/cgroup/memory${line#*:memory:}/memory.oom_control ;;
            *) continue ;;
        esac
        [ -r "$file" ] || continue
        while read -r name number; do [ "$name" != oom_kill ] || slurmlaunch_ooms=$number; done < "$file"
    done < /proc/self/cgroup
} 2>/dev/null
slurmlaunch_count_ooms; slurmlaunch_before=$slurmlaunch_ooms
# TERM ends the node as long as it has not said otherwise; USR1 does not, it may come early.
(trap - TERM; exec python3 -m slurmlaunch.node /runs/STAMP-len-00000000 "${slurmlaunch_task}") &
slurmlaunch_node=$!
trap 'kill -USR1 "$slurmlaunch_node" 2>/dev/null' USR1
# A signal ends the wait, but not the node: then wait again. Once the node has ended bash remembers its
# status, though the next wait may still answer to the last signal, and -1 says that it was missed.
while wait "$slurmlaunch_node"; kill -0 "$slurmlaunch_node" 2>/dev/null; do :; done
trap '' USR1
wait "$slurmlaunch_node" || :
slurmlaunch_status=0
wait "$slurmlaunch_node" || slurmlaunch_status=$?
[ "$slurmlaunch_status" -ge 0 ] || slurmlaunch_status=255
if [ "$slurmlaunch_status" -eq 75 ]; then
    slurmlaunch_mark "$slurmlaunch_status"  # before the requeue, which ends this script
    scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}" || { slurmlaunch_marked=; slurmlaunch_status=76; }
fi
if [ "$slurmlaunch_status" -eq 137 ]; then
    slurmlaunch_count_ooms; [ "$slurmlaunch_ooms" = "$slurmlaunch_before" ] || slurmlaunch_mark 77
fi
slurmlaunch_mark "$slurmlaunch_status"
exit "$slurmlaunch_status"
