#!/bin/bash
# Two machines with eight GPUs each: sbatch examples/slurm.sh
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --signal=TERM@120
#SBATCH --requeue
# The fit writes a checkpoint before a pre-emption, and the requeued script resumes from it.
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # srun does not inherit this option from sbatch
srun python examples/several_devices.py --run run/
