"""The journal: its index in MongoDB, and watching it as it grows."""
