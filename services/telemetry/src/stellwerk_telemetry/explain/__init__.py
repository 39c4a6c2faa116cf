"""Why a resource is in its state, from what the journal holds."""
