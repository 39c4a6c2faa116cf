"""What deployments were asked and answered: the index of the files that nodes bring to the blob store."""
