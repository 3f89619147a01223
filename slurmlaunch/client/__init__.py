"""The client's side: the process that submits and waits."""
