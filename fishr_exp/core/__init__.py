"""What all other packages share: contracts, errors, seeding, and the processes of a run."""
