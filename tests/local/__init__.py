"""Real processes of this machine: nodes, clients, programs and documents, without a scheduler."""
