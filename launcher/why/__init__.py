"""Why a run ended: facts from its directory and from Slurm, held against a catalogue of causes."""
