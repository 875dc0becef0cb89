"""How ranks come to be: on this machine, on hosts of a hostfile (pdsh), in a Slurm job.

Before the ranks. Nothing here loads torch but where the GPUs of this machine are counted.
"""
