"""The processes of an installation: the supervisor, its children, their parts and their logs."""
