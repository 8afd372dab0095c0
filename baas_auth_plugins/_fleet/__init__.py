"""Who fetches a token, among processes: leases, records and a cache that may hang. Redis is one such cache."""
