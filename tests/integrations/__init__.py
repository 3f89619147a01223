"""Other libraries and container runtimes on slurmlaunch."""
