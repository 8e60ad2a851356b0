"""What the compiler says of generation on a pod that is not there."""
