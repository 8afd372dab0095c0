"""Which process fetches a token: leases and records in a cache that other processes use, too. The cache may hang."""
