"""What every room passes on: contracts, errors, seeding, the processes of a run."""
