"""What this machine has and what this process may use of it: cores, memory, quotas, huge pages, its roofline."""
