"""The SQL database that evidence, registry, leases and remembered turn outcomes share."""
