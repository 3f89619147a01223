"""What the local backend stands on: the tasks of this machine, their limits and their queue."""
